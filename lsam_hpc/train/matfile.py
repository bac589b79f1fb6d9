"""Arrays of numbers in MATLAB 5 files.

scipy's reader crashes on some damaged files (a segmentation fault in scipy 1.17); this one raises ValueError.

Source: MathWorks, "MAT-File Format", Level 5.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_HEADER = 128  # bytes
_MATRIX, _COMPRESSED = 14, 15
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}


def arrays(raw: bytes) -> dict[str, NDArray[Any]]:
    """Return the real numeric arrays that a file holds, by name.

    Args:
        raw: the whole file.

    Raises:
        ValueError: the file is not a MATLAB 5 file, or is damaged.
    """
    if raw[126:128] not in (b"IM", b"MI"):
        raise ValueError("no MATLAB 5 file")
    order = "<" if raw[126:128] == b"IM" else ">"
    by_name: dict[str, NDArray[Any]] = {}
    try:
        for kind, body in _elements(memoryview(raw)[_HEADER:], order):
            if kind == _COMPRESSED:
                ((kind, body),) = _elements(memoryview(zlib.decompress(body)), order)
            if kind == _MATRIX:
                by_name |= _array(body, order)
    except (struct.error, zlib.error) as error:
        raise ValueError(str(error)) from error
    return by_name


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """Yield the type and the bytes of each data element."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from(order + "II", data, at)
        if kind >> 16:  # a small element: up to four bytes of data in the tag itself
            kind, size, begin, end = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        else:
            begin, end = at + 8, at + 8 + size
        if begin + size > min(end, len(data)):
            raise ValueError(f"an element of {size} bytes where {max(0, min(end, len(data)) - begin)} are left")
        yield kind, data[begin : begin + size]
        at = end if kind == _COMPRESSED else end + -end % 8


def _array(matrix: memoryview, order: str) -> dict[str, NDArray[Any]]:
    flags, shape, name, *parts = _elements(matrix, order)
    (flag,) = struct.unpack_from(order + "I", flags[1])
    if flag & 0xFF not in _CLASSES or len(parts) != 1:  # text, structures and complex numbers are skipped
        return {}
    ((stored, values),) = parts
    if stored not in _STORED:
        raise ValueError(f"numbers of type {stored}")
    dimensions = np.frombuffer(shape[1], order + "i4")
    numbers = np.frombuffer(values, order + _STORED[stored]).astype(_CLASSES[flag & 0xFF], copy=False)
    return {bytes(name[1]).decode("latin-1"): numbers.reshape(tuple(dimensions), order="F")}
