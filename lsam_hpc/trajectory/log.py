"""Reads one rank's log and checks every row, also of a file that is being written or was left by a killed writer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import h5py
import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory import schema
from lsam_hpc.trajectory.head import read_head
from lsam_hpc.trajectory.openfile import DAMAGE, opened
from lsam_hpc.trajectory.rows import Columns, checksums, long_checksums
from lsam_hpc.trajectory.safe import Stored, attribute, dataset, group, has
from lsam_hpc.trajectory.snapshot import DTYPES, decode

# A file that is being written may change between two reads. So a read that fails is tried TRIES times, PAUSE s apart,
# if the file was changed in the last RECENT s.
TRIES, PAUSE, RECENT = 5, 0.05, 1.0
# Elements of sketches or snapshots that are checked at a time.
BLOCK = 2**24

Result = TypeVar("Result")


class NewRows(NamedTuple):
    """Rows of a table that were not read before."""

    rows: Columns
    place: int  # to read from next
    stored: int  # rows of the table, of which the last may be incomplete


class RankLog:
    """One rank's log.

    The file is open only during a read: thousands of logs do not exhaust the open files, and new rows are seen.

    Args:
        path: of the file.
        part: the rank's group in a file of all ranks. Default: the file itself.
        partial: leave out damaged rows and describe them in `problems`. Default: raise InputError.

    Raises:
        InputError: the file cannot be read, is no trajectory log, or has an unknown version.
    """

    def __init__(self, path: Path, part: str = "", *, partial: bool = False) -> None:
        self.path = path
        self.part = part
        self.partial = partial
        self.problems: list[str] = []
        self.where = f"{path}: {part}" if part else str(path)
        self.head = self._read(lambda root, _: read_head(root, self.where))
        self.attributes: dict[str, Any] = dict(self.head.attributes)
        self.layout = [(name, shape, at) for (name, shape), at in zip(self.head.layout, self.head.offsets, strict=True)]
        self.size = self.head.size
        self.sketcher = self.head.sketch
        self.rank = int(self.attributes["rank"])
        self.version = int(self.attributes["schema_version"])

    @property
    def tables(self) -> list[str]:
        """Names of the tables that the log has."""
        return self.in_file

    @property
    def in_file(self) -> list[str]:
        """Names of the tables in the log's own file."""
        return self._read(lambda root, _: [name for name in self._known if _has_table(root, name)])

    @property
    def _known(self) -> list[str]:
        return [name for name in schema.TABLES if self.version > 1 or name in ("step", "exchange")]

    @property
    def result(self) -> dict[str, float] | None:
        """The rank's result (`schema.RESULT`, NaN for missing values), or None if it did not finish."""
        row = self.table("result")
        return {name: float(values[0]) for name, values in row.items()} if len(row["steps"]) else None

    def table(self, name: str) -> Columns:
        """Return the columns of a table of `schema.TABLES` without the long ones, for its intact rows.

        Columns that the file's version does not have, and missing values, are NaN or -1.

        Raises:
            InputError: the log has no such table, or it is damaged.
        """
        return self.read(name)[0]

    def read(self, *names: str) -> list[Columns]:
        """Return several tables, see `table`; the file is opened once for all of them."""
        tables = self._read(lambda root, size: [self._table(root, name, size)[0] for name in names])
        return [{name: values for name, values in t.items() if name != schema.VALUES_CRC.name} for t in tables]

    def after(self, places: Mapping[str, int], most: int) -> dict[str, NewRows]:
        """Return rows that were not read before, of several tables; the file is opened once for all of them.

        Args:
            places: name of each table, and the place in it to read from: 0, or `NewRows.place` of the last call.
            most: largest number of rows to read of each table.

        Raises:
            InputError: the log has no such table, or it is damaged.
        """

        def work(root: h5py.Group, size: int) -> dict[str, NewRows]:
            tables = {}
            for name, place in places.items():
                part = slice(place, place + most)
                rows, where, stored = self._rows(root, name, size, part)
                # Rows of a growing file that are not intact are read again: its writer may not have finished them.
                last = int(where[-1]) + 1 if len(where) else place
                tables[name] = NewRows(rows, last if size else min(part.stop, max(place, stored)), stored)
            return tables

        return self._read(work)

    def rows(self, name: str) -> int:
        """Return the number of rows of a table."""
        return len(self.table(name)[schema.TABLES[name][0].name])

    def counts(self) -> dict[str, int]:
        """Return the number of rows of each table; only the column of check sums is read, so rows may be damaged."""
        key = schema.CRC if self.version > 1 else schema.STEP[0]

        def work(root: h5py.Group, size: int) -> dict[str, int]:
            counts = {}
            for name in (name for name in self._known if _has_table(root, name)):
                column = self._column(group(root, name, self.where), name, key, size)
                stored = column.dataset[: column.rows]
                counts[name] = int(np.count_nonzero(stored)) if self.version > 1 else len(stored)
            return counts

        return self._read(work)

    def values(self, name: str, rows: slice = slice(None)) -> tuple[Columns, NDArray[np.float32]]:
        """Return a table of sketches or snapshots and its long column, for a slice of the rows.

        Raises:
            InputError: the log has no such table, or it is damaged.
        """

        def work(root: h5py.Group, size: int) -> tuple[Columns, NDArray[np.float32]]:
            table, places = self._table(root, name, size)
            chosen, places = {key: column[rows] for key, column in table.items()}, places[rows]
            column = self._column(group(root, name, self.where), name, schema.TABLES[name][-1], size)
            first, last = (places[0], places[-1] + 1) if len(places) else (0, 0)
            stored = column.dataset[first:last][places - first]
            good = long_checksums(stored) == chosen.pop("values_crc")
            if not good.all():
                self._report_damage(name, places[~good])
            return {key: values[good] for key, values in chosen.items()}, decode(stored[good])

        return self._read(work)

    def whole(self, name: str) -> list[int]:
        """Return which rows of a table of sketches or snapshots can be read: all, or the intact ones if `partial`.

        Raises:
            InputError: the log has no such table, or it is damaged.
        """
        rows = list(range(self.rows(name)))
        if not self.partial:
            return rows
        at_a_time = max(1, BLOCK // math.prod(self.head.sizes[part] for part in schema.TABLES[name][-1].per))
        blocks = [rows[at : at + at_a_time] for at in range(0, len(rows), at_a_time)]
        blocks = [
            part if self._intact(name, part) else [row for row in part if self._intact(name, [row])] for part in blocks
        ]
        return [row for part in blocks for row in part]

    def blocks(self, name: str, rows: Sequence[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield snapshots that do not fit into memory together: a range of elements of all of them at a time.

        Args:
            name: of the table.
            rows: numbers of its rows, ascending.

        Yields:
            The first element of the range, and the values, shape (rows, elements).

        Raises:
            InputError: the log has no such table, or it is damaged; damaged values are noticed after the last range.
        """
        columns, places = self._read(lambda root, size: self._table(root, name, size))
        expected, places = columns["values_crc"][list(rows)], places[list(rows)]
        sums = np.zeros(len(places), np.uint32)
        for start in range(0, self.size, schema.SNAPSHOT_ELEMENTS):
            part = self._block(name, places, start)
            sums = long_checksums(part, sums)
            yield start, decode(part)
        if (sums != expected).any():
            raise InputError(self._damage_text(name, places[sums != expected]))

    def _intact(self, name: str, rows: list[int]) -> bool:
        return len(self.values(name, slice(rows[0], rows[-1] + 1))[1]) == len(rows)

    def _block(self, name: str, places: NDArray[np.intp], start: int) -> NDArray[Any]:
        """Return one chunk of elements, from `start` on, of some of the stored rows."""

        def work(root: h5py.Group, size: int) -> NDArray[Any]:
            column = self._column(group(root, name, self.where), name, schema.TABLES[name][-1], size)
            part = np.empty((len(places), min(schema.SNAPSHOT_ELEMENTS, self.size - start)), column.dtype)
            for row, place in zip(part, places, strict=True):
                row[:] = column.dataset[place, start : start + len(row)]
            return part

        return self._read(work)

    def snapshot_dtype(self, state: str) -> str:
        """Return the type in which snapshots of a state are stored: a key of `snapshot.DTYPES`."""
        column = schema.SNAPSHOT[-1]

        def work(root: h5py.Group, size: int) -> str:
            part = group(root, f"snapshot/{state}", self.where)
            stored = self._column(part, f"snapshot/{state}", column, size).dtype
            return next(name for name, dtype in DTYPES.items() if np.dtype(dtype) == stored)

        return self._read(work)

    def _table(self, root: h5py.Group, name: str, size: int) -> tuple[Columns, NDArray[np.intp]]:
        """Return the intact rows without long columns and `crc`, and their positions in the file."""
        if name == "result" and self.version == 1:
            return self._version_1_result(root), np.arange(1)
        return self._rows(root, name, size)[:2]

    def _rows(
        self, root: h5py.Group, name: str, size: int, part_of: slice = slice(None)
    ) -> tuple[Columns, NDArray[np.intp], int]:
        """Return the intact rows of a part of a table, as `_table`, and the number of all stored rows."""
        columns = schema.TABLES[name]
        if not _has_table(root, name):
            raise InputError(f"{self.where}: expected a table {name}, found none")
        stored = [c for c in schema.stored(columns) if c.since <= self.version]
        part = group(root, name, self.where)
        datasets = {c.name: self._column(part, name, c, size) for c in stored}
        # A writer may have written some columns of the last rows only.
        count = min(column.rows for column in datasets.values())
        places = np.arange(count)[part_of]
        rows = slice(*((int(places[0]), int(places[-1]) + 1) if len(places) else (0, 0)))
        table: Columns = {c.name: datasets[c.name].dataset[rows] for c in stored if not c.per}
        good = np.ones(len(places), np.bool_)
        if self.version > 1:
            good = self._good_rows(name, stored, table, rows.start, growing=size > 0)
        for c in columns:
            if c.since > self.version:
                table[c.name] = np.full(len(places), c.no_value, c.dtype)
        kept = [c.name for c in schema.stored(columns) if not c.per and c is not schema.CRC]
        return {key: table[key][good] for key in kept if key in table}, places[good], count

    def _good_rows(
        self, name: str, stored: list[schema.Column], table: Columns, first: int, *, growing: bool
    ) -> NDArray[np.bool_]:
        """Return which rows have the right check sum; the last rows of a growing file may be incomplete."""
        good: NDArray[np.bool_] = checksums(stored, table) == table["crc"]
        count = len(good)
        if growing and not good.all():
            count = int(np.flatnonzero(good)[-1]) + 1 if good.any() else 0
            text = f"rows from {first + count} on are incomplete: the writer had not finished them"
            self._note(f"{self.where}: {name}: {text}")
        if not good[:count].all():
            self._report_damage(name, first + np.flatnonzero(~good[:count]))
        return good

    def _column(self, part: h5py.Group, name: str, column: schema.Column, size: int) -> Stored:
        """Return a column of a table, after checking its type, shape and chunks, and that the file holds its values."""
        label = f"{name}/{column.name}"
        stored = dataset(part, column.name, f"{self.where}: {name}")
        dtypes = [column.dtype] if not column.per or name.startswith("sketch/") else list(DTYPES.values())
        tail = tuple(self.head.sizes.get(size_name, -1) for size_name in column.per)
        if stored.dtype not in map(np.dtype, dtypes) or len(stored.shape) == 0 or stored.shape[1:] != tail:
            raise InputError(f"{self.where}: expected a column {label} of type {column.dtype}, found {stored.dataset}")
        if stored.chunks is None or (self.version > 1 and stored.chunks != schema.chunk(column, self.head.sizes)):
            raise InputError(f"{self.where}: expected chunks as in the schema in {label}, found {stored.chunks}")
        if stored.rows < stored.shape[0] and not size:
            raise InputError(f"{self.where}: expected {stored.shape} values in {label}, found {stored.bytes} bytes")
        if size and stored.bytes:
            handle = stored.dataset.id
            last = handle.get_chunk_info(handle.get_num_chunks() - 1)
            if last.byte_offset + last.size > self.path.stat().st_size:
                raise InputError(f"{self.where}: expected all of {label}, found a truncated file")
        return stored

    def _read(self, work: Callable[[h5py.Group, int], Result]) -> Result:
        """Open the file and return `work` of its root group and its size (0 if its writer closed it)."""
        tries = TRIES
        while True:
            try:
                with opened(self.path) as (file, size):
                    return work(group(file, self.part, self.where) if self.part else file, size)
            except InputError:
                if not (tries := tries - 1) or not self._changing():
                    raise
            except DAMAGE as error:
                if not (tries := tries - 1) or not self._changing():
                    text = str(error).splitlines()[0] if str(error) else type(error).__name__
                    raise InputError(f"{self.where}: expected a readable HDF5 file, found: {text}") from error
            time.sleep(PAUSE)

    def _changing(self) -> bool:
        try:
            return abs(time.time() - self.path.stat().st_mtime) < RECENT
        except OSError:
            return False

    def _report_damage(self, name: str, rows: NDArray[np.intp]) -> None:
        text = self._damage_text(name, rows)
        if not self.partial:
            raise InputError(f"{text}; --partial or Run(path, partial=True) reads the others")
        self._note(text)

    def _damage_text(self, name: str, rows: NDArray[np.intp]) -> str:
        return f"{self.where}: {name}: expected whole rows, found {len(rows)} damaged from row {rows[0]} on"

    def _note(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(text)

    def _version_1_result(self, root: h5py.Group) -> Columns:
        """Return the result of a file of version 1, which stores it in attributes, as a table."""
        if not has(root, "result"):
            return {c.name: np.empty(0) for c in schema.RESULT}
        part = group(root, "result", self.where)
        result = {c.name: attribute(part, c.name) for c in schema.RESULT}
        return {name: np.array([math.nan if value is None else value], "f8") for name, value in result.items()}


def _has_table(root: h5py.Group, name: str) -> bool:
    part: Any = root
    for step in name.split("/"):
        if not isinstance(part, h5py.Group) or not has(part, step):
            return False
        if part.id.links.get_info(step.encode()).type != h5py.h5l.TYPE_HARD:
            return True  # reading it raises the error
        part = part[step]
    return True
