"""One file for a whole run: a copy of all ranks' logs, or an index of virtual datasets over the ranks' files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory import schema
from lsam_hpc.trajectory.head import creator
from lsam_hpc.trajectory.log import RankLog
from lsam_hpc.trajectory.newfile import new_file
from lsam_hpc.trajectory.openfile import opened
from lsam_hpc.trajectory.reader import Run
from lsam_hpc.trajectory.snapshot import DTYPES, Snapshots
from lsam_hpc.trajectory.store import LIBVER, Table

BLOCK = 1024  # sketches copied at a time


def merge(run: Run, out: Path, compression: str = "gzip", advance: Callable[[], object] = lambda: None) -> None:
    """Write one file that holds the logs of all ranks. The run may have been killed, or have an older version.

    Args:
        run: the run; ranks and rows that its `problems` name are left out.
        out: path of the new file; it must not exist.
        compression: of snapshots, as in `Snapshots`. Default gzip.
        advance: called after each rank. Default: does nothing.

    Raises:
        InputError: the file exists or cannot be written, or a log is damaged.
    """
    with _new_run_file(out, run, schema.MERGED) as file:
        for rank in run.ranks:
            _copy(run.logs[rank], file.create_group(f"rank-{rank:04d}"), compression)
            advance()


def index(run: Run) -> Path:
    """Write RUN/run.h5: each column of all ranks as a virtual dataset, shape (ranks, rows, ...); return its path.

    Names of the rank files are relative, so that the directory can be moved. NaN and -1 fill ranks with fewer rows.

    Raises:
        InputError: `run` is not a directory, a writer has not closed its file, or the index cannot be written.
    """
    if not run.path.is_dir():
        raise InputError(f"{run.path}: expected a run directory to write an index into, found a file")
    for log in run.logs.values():
        with opened(log.path) as (_, growing):
            if growing:
                raise InputError(
                    f"{log.path}: expected a file that its writer closed, found one that is open or was "
                    "left by a killed writer: merge it into a file of its own"
                )
    out = run.path / "run.h5"
    with _new_run_file(out, run, schema.INDEX) as file:
        file.attrs["description"] = "virtual datasets: they lead to the files rank-NNNN.h5 beside this one"
        for name in schema.TABLES:
            logs = [(row, run.logs[rank]) for row, rank in enumerate(run.ranks) if name in run.logs[rank].in_file]
            if logs and any(log.rows(name) for _, log in logs):
                _virtual(file.create_group(name), name, logs, len(run.ranks))
    return out


@contextmanager
def _new_run_file(out: Path, run: Run, kind: str) -> Iterator[h5py.File]:
    """Make a file with the root attributes of a merged file or an index, see `new_file`."""
    with new_file(out, libver=LIBVER) as file:
        file.attrs["format"] = kind
        file.attrs["schema_version"] = schema.VERSION
        file.attrs["creator"] = creator()
        file["ranks"] = np.array(run.ranks, np.int64)
        file["ranks"].attrs["description"] = "that are held, in order"
        yield file


def _copy(log: RankLog, part: h5py.Group, compression: str) -> None:
    attributes = {"creator": creator(), **log.head.attributes, "schema_version": schema.VERSION}
    head = dataclasses.replace(log.head, attributes=attributes)
    head.write(part)
    names, result = log.tables, log.result
    for name, columns in schema.TABLES.items():
        kind, _, state = name.partition("/")
        if name in schema.OPTIONAL and name not in names:
            continue
        if not state:
            table = Table(part, name, columns, {})
            if name == "result":
                table.append([tuple(result.values())] if result else [])
            elif name in names:
                table.extend(log.table(name))
        elif name not in names:
            continue
        elif kind == "sketch":
            table = Table(part, name, columns, head.sizes)
            _copy_states(log, name, table, BLOCK, np.asarray)
        else:
            stored = Snapshots(states=(state,), dtype=log.snapshot_dtype(state), compression=compression)
            table = Table(part, name, columns, head.sizes, dtype=DTYPES[stored.dtype], filters=stored.filters())
            _copy_states(log, name, table, 1, stored.encode)


def _copy_states(
    log: RankLog, name: str, table: Table, block: int, encode: Callable[[NDArray[np.float32]], NDArray[Any]]
) -> None:
    for at in range(0, log.rows(name), block):
        rows, values = log.values(name, slice(at, at + block))
        table.extend({**rows, "values": encode(values).reshape(values.shape)})


def _virtual(part: h5py.Group, name: str, logs: list[tuple[int, RankLog]], ranks: int) -> None:
    rows = [log.rows(name) for _, log in logs]
    for c in schema.TABLES[name]:
        if any(c.since > log.version for _, log in logs):
            continue
        tail = tuple(logs[0][1].head.sizes[size] for size in c.per)
        snapshot = c.per and name.startswith("snapshot/")
        dtype = DTYPES[logs[0][1].snapshot_dtype(name.partition("/")[2])] if snapshot else c.dtype
        layout = h5py.VirtualLayout((ranks, max(rows), *tail), dtype)
        for (row, log), count in zip(logs, rows, strict=True):
            if count:
                source = h5py.VirtualSource(log.path.name, f"{name}/{c.name}", (count, *tail), dtype)
                layout[row, :count] = source
        fill = 0 if np.dtype(dtype).kind == "u" else c.no_value
        dataset = part.create_virtual_dataset(c.name, layout, fillvalue=fill)
        dataset.attrs["unit"], dataset.attrs["description"] = c.unit, c.description
