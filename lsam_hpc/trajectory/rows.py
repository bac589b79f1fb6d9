"""Rows as arrays, and their check sums, for the writer and the reader."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.trajectory import schema
from lsam_hpc.trajectory.backlog import Row

Columns = dict[str, NDArray[Any]]


def arrays(columns: Sequence[schema.Column], rows: Sequence[Row]) -> Columns:
    """Return an array per column; None becomes the column's "no value"."""
    table: Columns = {}
    for column, values in zip(columns, zip(*rows, strict=True), strict=True):
        if column.per:
            table[column.name] = np.stack(values)
        else:
            filled = [column.no_value if value is None else value for value in values]
            table[column.name] = np.array(filled, dtype=column.dtype)
    return table


def checksums(columns: Sequence[schema.Column], table: Mapping[str, NDArray[Any]]) -> NDArray[np.uint32]:
    """Return the CRC-32 of each row of a table without its long columns, see `schema.CRC`.

    Args:
        columns: as stored, in the schema's order.
        table: an array per column.
    """
    short = [c for c in columns if not c.per and c is not schema.CRC]
    packed = np.empty(len(table[short[0].name]), [(c.name, np.dtype(c.dtype).newbyteorder("<")) for c in short])
    for c in short:
        packed[c.name] = table[c.name]
    buffer, size = packed.tobytes(), packed.itemsize
    return np.array([zlib.crc32(buffer[at : at + size]) for at in range(0, len(buffer), size)], np.uint32)


def long_checksums(values: NDArray[Any], begun: NDArray[np.uint32] | None = None) -> NDArray[np.uint32]:
    """Return the CRC-32 of each row of a long column; `begun` is that of the elements before, to continue from."""
    little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    starts = [0] * len(little) if begun is None else begun.tolist()
    return np.array([zlib.crc32(row, start) for row, start in zip(little, starts, strict=True)], np.uint32)
