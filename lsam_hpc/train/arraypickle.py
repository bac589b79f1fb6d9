"""Arrays, numbers, strings, lists and dicts from pickles, without calling what a pickle names.

Neither numpy's own unpickling nor the C unpickler is used: together they crash on some damaged files (a segmentation
fault with numpy 2.4), and the C unpickler allocates a memo as large as a number in the file says.
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
    """Return the dict that a pickle holds; strings of Python 2 become bytes.

    Raises:
        ValueError: the pickle is damaged, or holds something else.
    """
    try:
        return _with_arrays(_Unpickler(io.BytesIO(raw), encoding="bytes").load())
    except Exception as error:  # a damaged pickle can raise any exception
        raise ValueError(f"{type(error).__name__}: {error}") from error


class _DType:
    """Placeholder for a numpy.dtype."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        self.name, self.order = _text(name), "<"
        if self.name not in _TYPES:
            raise ValueError(f"an array of {self.name}")

    def __setstate__(self, state: tuple[object, ...]) -> None:
        self.order = _text(state[1]).replace("|", "<")  # one-byte types have no byte order


class _Array:
    """Placeholder for a numpy.ndarray."""

    def __init__(self, *_: object) -> None:
        self.array: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[int, tuple[int, ...], _DType, bool, bytes]) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(data, bytes) or math.prod(shape) * int(dtype.name[1]) != len(data):
            raise ValueError("an array whose shape is not that of its bytes")
        numbers = np.frombuffer(data, dtype.order + dtype.name)
        self.array = numbers.reshape(shape, order="F" if fortran else "C")


def _encoded(text: str, encoding: str) -> bytes:
    if encoding != "latin1":  # how Python 3 writes bytes with protocol 2
        raise ValueError(f"bytes as {encoding}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encoded,
}


class _Unpickler(pickle._Unpickler):
    """The unpickler written in Python, whose memo is a dict."""

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array")
        return _ALLOWED[module, name]


def _with_arrays(content: Any) -> Any:  # noqa: ANN401
    """Return a dict with its placeholders replaced by arrays."""
    if not isinstance(content, dict):
        raise TypeError(f"a {type(content).__name__}")
    return {key: value.array if isinstance(value, _Array) else value for key, value in content.items()}


def _text(name: object) -> str:
    return name.decode("latin1") if isinstance(name, bytes) else str(name)
