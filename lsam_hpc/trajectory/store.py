"""A rank's HDF5 file as it is written: whole at the start, then only grown, so that any kill leaves it readable."""

from __future__ import annotations

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
from lsam_hpc.trajectory.newfile import abandon
from lsam_hpc.trajectory.rows import arrays, checksums, long_checksums
from lsam_hpc.trajectory.snapshot import DTYPES, Snapshots

# A kill can cut a write in two between pages of memory, and metadata that is rewritten in place is lost then. HDF5's
# paged allocation keeps what is smaller than a page inside one. (Seen without it: 2 of about 7,000 kills left a
# column that could not be read.)
PAGE = 4096
# What every HDF5 since 1.10 reads; "latest" would ask for the reader's HDF5 to be as new as the writer's.
LIBVER = ("v110", "v110")


class Store:
    """The file.

    Args:
        path: of the file, which appears when it is complete, and is called .part before.
        head: what it says of itself.
        sketched: states of which there will be sketches.
        snapshots: how snapshots are kept, None without them.
        locking: as in h5py.File.
        fill: puts rows of an earlier attempt into the tables; the file may then replace that one's. Default: none.

    Raises:
        InputError: the file exists already or cannot be made.
    """

    def __init__(
        self,
        path: Path,
        head: Head,
        sketched: Sequence[str] = (),
        snapshots: Snapshots | None = None,
        locking: bool | str | None = None,
        fill: Callable[[dict[str, Table]], None] | None = None,
    ) -> None:
        part = path.with_name(path.name + ".part")
        if path.exists() and fill is None:
            raise InputError(f"{path}: expected no such file, found one")
        try:
            self._file = h5py.File(part, "w", libver=LIBVER, locking=locking, fs_strategy="page", fs_page_size=PAGE)
            head.write(self._file)
            self.tables = make_tables(self._file, head, sketched, snapshots)
            if fill is not None:
                fill(self.tables)
            self._file.swmr_mode = True
            part.rename(path)
        except OSError as error:
            raise InputError(f"{path}: expected a file that can be made, found: {error}") from error

    def flush(self) -> None:
        """Hand everything to the operating system; a reader sees it then, and a kill does not lose it."""
        self._file.flush()

    def abandon(self) -> None:
        """Write no more to the file, after an error; it stays as a killed writer's."""
        abandon(self._file)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def make_tables(root: h5py.Group, head: Head, sketched: Sequence[str], snapshots: Snapshots | None) -> dict[str, Table]:
    """Make the tables of a rank in a file, or in the rank's group of a file of all ranks."""
    tables = {}
    for name, columns in schema.TABLES.items():
        kind, _, state = name.partition("/")
        if not state:
            tables[name] = Table(root, name, columns, {})
        elif kind == "sketch" and head.sketch is not None and state in sketched:
            tables[name] = Table(root, name, columns, head.sizes)
        elif kind == "snapshot" and snapshots is not None and state in snapshots.states:
            tables[name] = Table(root, name, columns, head.sizes, DTYPES[snapshots.dtype], snapshots.filters())
            root["snapshot"].attrs["dtype"] = snapshots.dtype
    return tables


class Table:
    """A group with a dataset per column.

    Args:
        root: where the group is made.
        name: of the table.
        columns: without check sums.
        sizes: of the further dimensions of long columns.
        dtype: of long columns, if it is not the schema's.
        filters: of long columns: arguments of create_dataset.
    """

    def __init__(
        self,
        root: h5py.Group,
        name: str,
        columns: tuple[schema.Column, ...],
        sizes: Mapping[str, int],
        dtype: str | None = None,
        filters: Mapping[str, Any] | None = None,
    ) -> None:
        group = root.create_group(name)
        self.columns = columns
        self._stored = schema.stored(columns)
        self._datasets = {}
        for c in self._stored:
            tail = tuple(sizes[part] for part in c.per)
            kept = np.dtype(dtype if dtype and c.per else c.dtype)
            dataset = group.create_dataset(
                c.name,
                (0, *tail),
                kept,
                maxshape=(None, *tail),
                chunks=schema.chunk(c, sizes),
                fillvalue=0 if kept.kind == "u" else c.no_value,
                **(filters if c.per and filters else {}),
            )
            dataset.attrs["unit"] = c.unit
            dataset.attrs["description"] = c.description
            self._datasets[c.name] = dataset
        self._chunk = min(dataset.chunks[0] for dataset in self._datasets.values())
        self._rows = 0

    @property
    def to_full_chunk(self) -> int:
        """Number of rows that fill the last chunk on disk."""
        return int(self._chunk - self._rows % self._chunk)

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows, with a value per column or None."""
        if rows:
            self.extend(arrays(self.columns, rows))

    def extend(self, table: Mapping[str, NDArray[Any]]) -> None:
        """Add rows, with an array per column."""
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
