"""Rows that wait for the disk, bounded: what does not fit is left out and counted."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory import schema

Row = tuple[Any, ...]  # a value per column of the table, None for no value

# What Python keeps for a row and for a number in it.
_ROW_BYTES, _NUMBER_BYTES = 120, 32


class Backlog:
    """Rows of every table, put by threads that must not wait and taken by the one that writes.

    When half of the room is taken, optional values, sketches and snapshots are left out; when all of it is, rows are.
    A sketch or snapshot too large for that is kept if no other of its table waits.

    Args:
        limit: room, B.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.dropped = {"rows": 0, "values": 0, "states": 0}
        self.full_at = dict.fromkeys(schema.TABLES, 1)  # rows that make a full chunk on disk
        self._rows: dict[str, list[Row]] = {name: [] for name in schema.TABLES}
        self._bytes = 0
        self._asked = 0  # flushes
        self._flushed = 0
        self._closed = False
        self._changed = threading.Condition()

    def put(self, table: str, values: Mapping[str, Any]) -> None:
        """Add a row.

        Raises:
            InputError: it lacks a column that is not optional, or has one that is not in the schema.
        """
        names, needed, optional = _COLUMNS[table]
        if not needed <= values.keys() <= names.keys():
            raise InputError(f"row: expected the columns {', '.join(names)}, found {', '.join(values)}")
        row = tuple([values.get(name) for name in names])
        state = "/" in table
        with self._changed:
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
        """Wait until a chunk is full, a flush is asked for, the backlog is closed, or time is up.

        Returns:
            Number of the last flush that was asked for and is not done, else 0; whether no more rows will come.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    self._closed
                    or self._asked > self._flushed
                    or any(len(rows) >= self.full_at[table] for table, rows in self._rows.items())
                ),
                seconds,
            )
            return self._asked if self._asked > self._flushed else 0, self._closed

    def take(self, table: str, everything: bool) -> list[Row]:
        """Return the rows of a table that fill chunks, or all of them, and forget them once `written` is called."""
        with self._changed:
            rows, full = self._rows[table], self.full_at[table]
            count = len(rows) if everything else full * (len(rows) >= full)
            taken, self._rows[table] = rows[:count], rows[count:]
            return taken

    def written(self, rows: list[Row]) -> None:
        """Give back the room of rows that were taken."""
        with self._changed:
            self._bytes -= sum(map(_size, rows))

    def lost(self, rows: int) -> None:
        """Count rows that were taken but could not be written."""
        with self._changed:
            self.dropped["rows"] += rows

    def flush(self, seconds: float) -> bool:
        """Ask for a flush and wait for it; return whether it was done in time."""
        with self._changed:
            self._asked += 1
            number = self._asked
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._flushed >= number, seconds)

    def flushed(self, number: int) -> None:
        """Tell those who wait that a flush is done."""
        with self._changed:
            self._flushed = max(self._flushed, number)
            self._changed.notify_all()

    def close(self) -> None:
        """Take no more rows: they are counted as lost."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()


def _size(row: Row) -> int:
    return _ROW_BYTES + sum([v.nbytes if isinstance(v, np.ndarray) else 0 if v is None else _NUMBER_BYTES for v in row])


def _columns(columns: tuple[schema.Column, ...]) -> tuple[dict[str, None], set[str], set[int]]:
    """Return the names in order, those that a row must have, and the places of the others."""
    return (
        {c.name: None for c in columns},
        {c.name for c in columns if not c.optional},
        {i for i, c in enumerate(columns) if c.optional},
    )


_COLUMNS = {table: _columns(columns) for table, columns in schema.TABLES.items()}
