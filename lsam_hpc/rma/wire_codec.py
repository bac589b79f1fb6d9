"""Transfer in half precision: float32 rounded to 16 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError

_LIMITS = {"bfloat16": 3.3895313892515355e38, "float16": 65504.0}  # largest finite numbers


class WireCodec:
    """Encodes float32 numbers in 16 bits.

    Args:
        name: `"bfloat16"`: float32's range, 8 bits of precision (a rounding error of at most 2^-8 of the value);
            `"float16"`: up to 65504, 11 bits (2^-11 of the value, down to 6e-5, and at most 3e-8 below).

    Raises:
        InputError: the name is unknown, or bfloat16 is asked for without the package ml_dtypes.
    """

    def __init__(self, name: str) -> None:
        if name not in _LIMITS:
            raise InputError(f"wire_dtype: expected {' or '.join(_LIMITS)} for half the bytes, found {name}")
        self.name = name
        self.dtype: np.dtype[Any] = _bfloat16() if name == "bfloat16" else np.dtype(np.float16)
        self._limit = np.float32(_LIMITS[name])

    def encode(self, values: NDArray[np.float32], out: NDArray[Any]) -> None:
        """Round to the nearest 16-bit number, ties to even; clip values beyond its range to the largest one.

        Args:
            values: shape (n,).
            out: shape (n,), this codec's `dtype`.
        """
        out[...] = np.clip(values, -self._limit, self._limit)


def _bfloat16() -> np.dtype[Any]:
    try:
        import ml_dtypes
    except ImportError:
        raise InputError(
            "wire_dtype bfloat16: expected the package ml_dtypes (pip install 'lsam-hpc[train]'), found none"
        ) from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype
