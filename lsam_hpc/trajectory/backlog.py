"""A bounded queue of rows that wait for the disk: rows that do not fit are dropped and counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory import schema

Row = tuple[Any, ...]  # one value per column of the table, None for a missing value

# Estimated memory of a row and of a number in it, B.
_ROW_BYTES, _NUMBER_BYTES = 120, 32


class Backlog:
    """A queue of rows per table: any thread puts rows without waiting, the writer's thread takes them.

    Above half of `limit`, optional values, sketches and snapshots are dropped; above `limit`, rows are dropped too.
    A sketch or snapshot larger than half of `limit` is kept if no other row of its table waits.

    Args:
        limit: memory for the rows that wait, B.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.dropped = {"rows": 0, "values": 0, "states": 0}
        self.full_at = dict.fromkeys(schema.TABLES, 1)  # rows that make a full chunk on disk
        self._rows: dict[str, list[Row]] = {name: [] for name in schema.TABLES}
        self._bytes = 0
        self._requested = 0  # flushes
        self._flushed = 0
        self._closed = False
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)

    def put(self, table: str, values: Mapping[str, Any]) -> None:
        """Add a row.

        Raises:
            InputError: `values` lacks a column that is not optional, or has one that is not in the schema.
        """
        names, missing, optional, in_order = _COLUMNS[table]
        whole = values if len(values) == len(names) else {**missing, **values}
        try:
            row = in_order(whole)
        except KeyError:
            row = ()
        if len(row) != len(whole):
            raise InputError(f"row: expected the columns {', '.join(names)}, found {', '.join(values)}")
        state = "/" in table
        with self._lock:
            rows = self._rows[table]
            size = _size(row)
            if self._bytes + size > self.limit // 2:
                if not state:
                    self.dropped["values"] += sum(row[i] is not None for i in optional)
                    row = tuple([None if i in optional else value for i, value in enumerate(row)])
                    size = _size(row)
                elif rows or size <= self.limit // 2:
                    self.dropped["states"] += 1
                    return
            if self._closed or (not state and self._bytes + size > self.limit):
                self.dropped["states" if state else "rows"] += 1
                return
            rows.append(row)
            self._bytes += size
            if len(rows) >= self.full_at[table]:
                self._changed.notify_all()

    def wait(self, seconds: float) -> tuple[int, bool]:
        """Wait until a chunk is full, a flush is requested, the backlog is closed, or `seconds` have passed.

        Returns:
            Number of the last flush that was requested and is not done, 0 if none; whether the backlog is closed.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._closed
                    or self._requested > self._flushed
                    or any(len(rows) >= self.full_at[table] for table, rows in self._rows.items())
                ),
                seconds,
            )
            return self._requested if self._requested > self._flushed else 0, self._closed

    def take(self, table: str, *, everything: bool) -> list[Row]:
        """Remove and return the rows that fill a chunk, or all; they count against `limit` until `release`."""
        with self._changed:
            rows, full = self._rows[table], self.full_at[table]
            count = len(rows) if everything else full * (len(rows) >= full)
            taken, self._rows[table] = rows[:count], rows[count:]
            return taken

    def release(self, rows: list[Row]) -> None:
        """Stop counting rows against `limit`, after they were written."""
        with self._changed:
            self._bytes -= sum(map(_size, rows))

    def count_lost(self, rows: int, kind: str = "rows") -> None:
        """Count rows, or rows of kind "states", that were taken but not written."""
        with self._changed:
            self.dropped[kind] += rows

    def flush(self, seconds: float) -> bool:
        """Request a flush and wait for it; return whether it was done within `seconds`."""
        with self._changed:
            self._requested += 1
            number = self._requested
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._flushed >= number, seconds)

    def flush_done(self, number: int) -> None:
        """Wake the threads that wait for this flush or an earlier one."""
        with self._changed:
            self._flushed = max(self._flushed, number)
            self._changed.notify_all()

    def close(self) -> None:
        """Accept no more rows: rows that are put from now on are counted as dropped."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _size(row: Row) -> int:
    # A state's array is the last value; the others are numbers, which are counted without looking at each.
    last = row[-1]
    array = last.nbytes if isinstance(last, np.ndarray) else _NUMBER_BYTES * (last is not None)
    return _ROW_BYTES + array + _NUMBER_BYTES * (len(row) - 1 - row[:-1].count(None))


def _columns(
    columns: tuple[schema.Column, ...],
) -> tuple[list[str], dict[str, None], set[int], Callable[[Mapping[str, Any]], Row]]:
    """Return the names, "no value" of those that may be missing, their positions, and what takes a row's values."""
    return (
        [c.name for c in columns],
        {c.name: None for c in columns if c.optional},
        {i for i, c in enumerate(columns) if c.optional},
        itemgetter(*(c.name for c in columns)),
    )


_COLUMNS = {table: _columns(columns) for table, columns in schema.TABLES.items()}
