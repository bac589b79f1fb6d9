"""Arrays, numbers, strings, lists and dicts from pickles, without running what a pickle names.

Nothing of numpy's own unpickling is called, nor C's unpickler: together they ended the process on some damaged files
(a segmentation fault with numpy 2.4), and C's memo takes as much memory as a number in the file says.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TYPES = ("u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8")


def load(raw: bytes) -> Any:  # noqa: ANN401
    """Return what a pickle holds; Python 2's strings as bytes.

    Raises:
        ValueError: it is damaged, or holds something else.
    """
    try:
        return _finished(_Unpickler(io.BytesIO(raw), encoding="bytes").load())
    except Exception as error:  # a damaged pickle fails with anything
        raise ValueError(f"{type(error).__name__}: {error}") from error


class _DType:
    """Stands for a numpy.dtype that is being made."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        self.name, self.order = _text(name), "<"
        if self.name not in _TYPES:
            raise ValueError(f"an array of {self.name}")

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = _text(state[1]).replace("|", "<")  # one byte has no order


class _Array:
    """Stands for a numpy.ndarray that is being made."""

    def __init__(self, *_: object) -> None:
        self.made: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[int, tuple[int, ...], _DType, bool, bytes]) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(data, bytes) or math.prod(shape) * int(dtype.name[1]) != len(data):
            raise ValueError("an array whose shape is not that of its bytes")
        numbers = np.frombuffer(data, dtype.order + dtype.name)
        self.made = numbers.reshape(shape, order="F" if fortran else "C")


def _encoded(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # how Python 3 writes bytes with protocol 2
        raise ValueError(f"bytes as {encoding}")
    return text.encode("latin1")


_STANDS_FOR: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encoded,
}


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler in Python: its memo is a dict."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        if (module, name) not in _STANDS_FOR:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array")
        return _STANDS_FOR[module, name]


def _finished(found: Any) -> Any:  # noqa: ANN401
    """Return a dict with arrays in place of what stands for them."""
    if not isinstance(found, dict):
        raise TypeError(f"a {type(found).__name__}")
    return {key: value.made if isinstance(value, _Array) else value for key, value in found.items()}


def _text(name: object) -> str:
    return name.decode("latin1") if isinstance(name, bytes) else str(name)
