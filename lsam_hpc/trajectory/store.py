"""Writes a rank's HDF5 file: its structure first, then only rows, so that a kill at any time leaves it readable."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory import schema
from lsam_hpc.trajectory.backlog import Row
from lsam_hpc.trajectory.head import Head
from lsam_hpc.trajectory.newfile import abandon, reason
from lsam_hpc.trajectory.openfile import DAMAGE
from lsam_hpc.trajectory.rows import arrays, checksums, long_checksums
from lsam_hpc.trajectory.snapshot import DTYPES, Snapshots

# A kill can split a write between two memory pages, and metadata that is being rewritten in place is lost then. HDF5's
# paged allocation keeps metadata smaller than a page inside one page. (Without it 2 of about 7,000 kills left a column
# that could not be read.)
PAGE = 4096
# Every HDF5 since 1.10 reads this format; "latest" would require a reader's HDF5 to be as new as the writer's.
LIBVER = ("v110", "v110")


class Store:
    """The file and its tables.

    Args:
        path: of the file; until its head and tables are complete, it has ".part" appended to its name.
        head: of the file.
        sketched: states that have a table of sketches. Default: none.
        snapshots: format of the snapshots. Default: no snapshots.
        curvature: whether there is a table of the curvature. Default False.
        locking: as in h5py.File.
        fill: copies rows of an earlier attempt into the tables; the file then replaces that attempt's. Default: none.

    Raises:
        InputError: the file exists already or cannot be made.
    """

    def __init__(
        self,
        path: Path,
        head: Head,
        *,
        sketched: Sequence[str] = (),
        snapshots: Snapshots | None = None,
        curvature: bool = False,
        locking: bool | str | None = None,
        fill: Callable[[dict[str, Table]], None] | None = None,
    ) -> None:
        # Not atomic_path: the file may replace another one, and it gets its name while HDF5 has it open.
        part = path.with_name(path.name + ".part")
        if path.exists() and fill is None:
            raise InputError(f"{path}: expected no such file, found one")
        self._abandoned = False
        file: h5py.File | None = None
        try:
            file = self._file = h5py.File(
                part, "w", libver=LIBVER, locking=locking, fs_strategy="page", fs_page_size=PAGE
            )
            head.write(self._file)
            self.tables = make_tables(self._file, head, sketched, snapshots, curvature=curvature)
            if fill is not None:
                fill(self.tables)
            self._file.swmr_mode = True
            part.rename(path)
        except DAMAGE as error:  # h5py raises others than OSError for some disk errors
            if file is not None:
                abandon(file)
                with contextlib.suppress(OSError):
                    part.unlink()
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: expected a file that can be made, found: {reason(error)}") from error

    @property
    def bytes(self) -> int:
        """Size of all rows without snapshots, B."""
        return sum(table.bytes for name, table in self.tables.items() if not name.startswith("snapshot/"))

    def flush(self) -> None:
        """Hand all rows to the operating system: readers see them, and killing this process does not lose them."""
        self._file.flush()

    def abandon(self) -> None:
        """Close the file after an error; it stays like the file of a killed writer."""
        self._abandoned = True
        abandon(self._file)

    def close(self) -> None:
        """Close the file, unless it is abandoned."""
        if not self._abandoned:
            self._file.close()


def make_tables(
    root: h5py.Group, head: Head, sketched: Sequence[str], snapshots: Snapshots | None, *, curvature: bool = False
) -> dict[str, Table]:
    """Make the tables of a rank's file."""
    tables = {}
    for name, columns in schema.TABLES.items():
        kind, _, state = name.partition("/")
        if name in schema.OPTIONAL and not curvature:
            continue
        if not state:
            tables[name] = Table(root, name, columns, {})
        elif kind == "sketch" and head.sketch is not None and state in sketched:
            tables[name] = Table(root, name, columns, head.sizes)
        elif kind == "snapshot" and snapshots is not None and state in snapshots.states:
            dtype, filters = DTYPES[snapshots.dtype], snapshots.filters()
            tables[name] = Table(root, name, columns, head.sizes, dtype=dtype, filters=filters)
            root["snapshot"].attrs["dtype"] = snapshots.dtype
    return tables


class Table:
    """A group with one dataset per column.

    Args:
        root: parent of the group.
        name: of the table.
        columns: without check sums.
        sizes: of the further dimensions of long columns.
        dtype: of long columns. Default: the schema's.
        filters: of long columns: arguments of create_dataset. Default: none.
    """

    def __init__(
        self,
        root: h5py.Group,
        name: str,
        columns: tuple[schema.Column, ...],
        sizes: Mapping[str, int],
        *,
        dtype: str | None = None,
        filters: Mapping[str, Any] | None = None,
    ) -> None:
        group = root.create_group(name)
        self.columns = columns
        self._stored = schema.stored(columns)
        self._datasets = {}
        for c in self._stored:
            tail = tuple(sizes[part] for part in c.per)
            stored_dtype = np.dtype(dtype if dtype and c.per else c.dtype)
            dataset = group.create_dataset(
                c.name,
                (0, *tail),
                stored_dtype,
                maxshape=(None, *tail),
                chunks=schema.chunk(c, sizes),
                fillvalue=0 if stored_dtype.kind == "u" else c.no_value,
                **(filters if c.per and filters else {}),
            )
            dataset.attrs["unit"] = c.unit
            dataset.attrs["description"] = c.description
            self._datasets[c.name] = dataset
        self._chunk = min(dataset.chunks[0] for dataset in self._datasets.values())
        self._rows = 0
        self._row_bytes: int = sum(d.dtype.itemsize * math.prod(d.shape[1:]) for d in self._datasets.values())

    @property
    def bytes(self) -> int:
        """Size of the rows, uncompressed, B."""
        return self._rows * self._row_bytes

    @property
    def to_full_chunk(self) -> int:
        """Number of rows that fill the last chunk on disk."""
        return int(self._chunk - self._rows % self._chunk)

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows: one value per column, None for a missing one."""
        if rows:
            self.extend(arrays(self.columns, rows))

    def extend(self, table: Mapping[str, NDArray[Any]]) -> None:
        """Add rows: one array per column."""
        table = dict(table)
        for c in self.columns:
            if c.per:
                table["values_crc"] = long_checksums(table[c.name])
        table["crc"] = checksums(self._stored, table)
        end = self._rows + len(table["crc"])
        for c in self._stored:
            self._datasets[c.name].resize(end, axis=0)
            self._datasets[c.name][self._rows : end] = table[c.name]
        self._rows = end
