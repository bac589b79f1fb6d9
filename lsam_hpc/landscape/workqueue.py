"""Points shared out over MPI ranks by tickets, and kept through a kill: what is finished is never evaluated again.

No rank waits for another while points are left: a rank draws the next one from a counter in a window. Each rank appends
what it finished to a file of its own, so that nothing but the points under way is lost, however the job ends.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError

if TYPE_CHECKING:
    from mpi4py import MPI

Work = Callable[[int], Sequence[float]]
OPTIONS = "options.json"
SYNC = 1.0  # s between two waits for the disk, which outlast a quick point many times
_FILES = "points-*.bin"


def evaluate(
    work: Work,
    count: int,
    columns: int,
    folder: Path | None = None,
    options: Mapping[str, Any] | None = None,
    comm: MPI.Intracomm | None = None,
    title: str | None = None,
) -> NDArray[np.float64]:
    """Return the values of all points, shape (count, columns), alike on all ranks.

    Args:
        work: gives the values of a point, shape (columns,), the same on whichever rank it runs.
        count: number of points.
        columns: number of values of each.
        folder: where finished points are kept; those that are there are not evaluated again. Default: nowhere.
        options: what the values depend on; points of other options in the folder are refused.
        comm: the ranks that share the points; collective. Default: this process alone, without MPI.
        title: of the progress shown on rank 0. Default: none is shown.

    Raises:
        InputError: the folder holds points of other options, or cannot be written; or `work` raised it.
    """
    if comm is None or comm.size == 1:
        found = dict(_begin(folder, dict(options or {}), columns, count))
        todo = [index for index in range(count) if index not in found]
        tickets = itertools.count()
        found.update(_loop(work, todo, tickets.__next__, folder, columns, 0, _Bar(title, count, len(found))))
        return _table(found, count, columns)
    return _by_ranks(work, count, columns, folder, dict(options or {}), comm, title)


def _by_ranks(
    work: Work,
    count: int,
    columns: int,
    folder: Path | None,
    options: dict[str, Any],
    comm: MPI.Intracomm,
    title: str | None,
) -> NDArray[np.float64]:
    from lsam_hpc.rma import Progress, agree, reason
    from lsam_hpc.rma.counter import Cells

    # Only rank 0 looks, so that all see the same whatever a network file system shows to each.
    first = agree(comm, lambda: _begin(folder, options, columns, count) if comm.rank == 0 else {})
    before: dict[int, tuple[float, ...]] = comm.bcast(first)
    todo = [index for index in range(count) if index not in before]
    with ExitStack() as stack:
        cells = Cells(comm, 2)  # of rank 0: tickets drawn, points finished
        stack.callback(cells.close)
        if reason(comm) is not None:
            stack.callback(Progress(comm).close)
        bar = _Bar(title if comm.rank == 0 else None, count, len(before), lambda: cells.value(0, 1))

        def draw() -> int:
            return cells.add(0, 0)

        def finished() -> None:
            cells.add(0, 1)

        own = agree(comm, lambda: _loop(work, todo, draw, folder, columns, comm.rank, bar, finished))
    found = dict(before)
    for part in comm.allgather(own):
        found.update(part)
    return _table(found, count, columns)


def _loop(
    work: Work,
    todo: Sequence[int],
    draw: Callable[[], int],
    folder: Path | None,
    columns: int,
    rank: int,
    bar: _Bar,
    finished: Callable[[], object] = lambda: None,
) -> dict[int, tuple[float, ...]]:
    """Evaluate the points of the tickets that this rank draws."""
    found = {}
    with ExitStack() as stack:
        stack.callback(bar.close)
        keep = _Kept(folder / f"points-{rank:04d}.bin", columns) if folder else None
        if keep:
            stack.callback(keep.close)
        while (ticket := draw()) < len(todo):
            values = tuple(float(value) for value in work(todo[ticket]))
            found[todo[ticket]] = values
            if keep:
                keep.append(todo[ticket], values)
            finished()
            bar.show()
    return found


def _begin(folder: Path | None, options: dict[str, Any], columns: int, count: int) -> dict[int, tuple[float, ...]]:
    """Make the folder, or return the points that are in it."""
    if folder is None:
        return {}
    given = json.loads(json.dumps(options))  # as a file gives it back
    file = folder / OPTIONS
    try:
        folder.mkdir(exist_ok=True)
        if file.exists():
            _compare(folder, json.loads(file.read_text()), given)
        elif any(folder.glob(_FILES)):
            raise InputError(f"{folder}: expected {OPTIONS} beside the points, found none: remove the folder")
        else:
            temporary = folder / f"{OPTIONS}.tmp"
            temporary.write_text(json.dumps(given, indent=2) + "\n")
            temporary.replace(file)
        return read_points(folder, columns, count)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{folder}: expected a folder for finished points, found: {error}") from error


def _compare(folder: Path, old: Any, new: dict[str, Any]) -> None:  # noqa: ANN401
    if old == new:
        return
    old = old if isinstance(old, dict) else {}
    name = next((name for name in {**new, **old} if old.get(name) != new.get(name)), "none")
    raise InputError(
        f"{folder}: expected points of the same options, found {name} {_short(old.get(name))} there and "
        f"{_short(new.get(name))} now: remove the folder, or choose another name"
    )


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def read_points(folder: Path, columns: int, count: int) -> dict[int, tuple[float, ...]]:
    """Return the finished points in a folder: their values by index. Torn records are left out.

    Args:
        folder: of `evaluate`.
        columns: number of values of each point.
        count: number of points; others are left out.
    """
    kind = _record(columns)
    found = {}
    for file in sorted(folder.glob(_FILES)):
        stored = file.read_bytes()
        rows = np.frombuffer(stored[: len(stored) // kind.itemsize * kind.itemsize], kind)
        for row in rows:
            index = int(row["index"])
            if row["crc"] == _crc(row) and 0 <= index < count:
                found[index] = tuple(float(value) for value in row["values"])
    return found


class _Kept:
    """A file of finished points to which one rank appends."""

    def __init__(self, path: Path, columns: int) -> None:
        self._path, self._kind = path, _record(columns)
        self._synced = time.monotonic()
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            # What a killed program left of its last record would shift all that follow.
            size = os.fstat(self._file).st_size
            os.ftruncate(self._file, size // self._kind.itemsize * self._kind.itemsize)
        except OSError as error:
            raise self._refused(error.strerror) from error

    def append(self, index: int, values: tuple[float, ...]) -> None:
        """Write a point: it outlasts a kill when this returns, and a crash of the machine at most `SYNC` later."""
        if len(values) != self._kind["values"].shape[0]:
            raise InputError(f"point {index}: expected {self._kind['values'].shape[0]} values, found {len(values)}")
        row = np.zeros((), self._kind)
        row["index"], row["values"] = index, values
        row["crc"] = _crc(row)
        try:
            written = os.write(self._file, row.tobytes())
            if time.monotonic() - self._synced > SYNC:
                self._sync()
        except OSError as error:
            raise self._refused(error.strerror) from error
        if written != self._kind.itemsize:
            raise self._refused("no space left")

    def close(self) -> None:
        try:
            self._sync()
        except OSError as error:
            raise self._refused(error.strerror) from error
        finally:
            os.close(self._file)

    def _sync(self) -> None:
        os.fsync(self._file)
        self._synced = time.monotonic()

    def _refused(self, why: str | None) -> InputError:
        return InputError(f"{self._path}: expected a file that can be written, found: {why}")


class _Bar:
    """Progress with an estimate of the time left."""

    def __init__(self, title: str | None, count: int, before: int, finished: Callable[[], int] | None = None) -> None:
        self._bar: Any = None
        self._before, self._finished = before, finished
        if title is not None:
            try:
                from tqdm import tqdm
            except ImportError as error:
                raise InputError("progress: expected the package tqdm, found none: pip install 'lsam-hpc[train]'"
                                 ) from error  # fmt: skip
            every = 0.1 if sys.stderr.isatty() else 10.0
            self._bar = tqdm(total=count, initial=before, desc=title, unit="point", mininterval=every)

    def show(self) -> None:
        """Show how many points all ranks have finished."""
        if self._bar is not None:
            done = self._bar.n + 1 if self._finished is None else self._before + self._finished()
            self._bar.update(done - self._bar.n)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def _record(columns: int) -> np.dtype[np.void]:
    return np.dtype([("index", "<i8"), ("values", "<f8", (columns,)), ("crc", "<u4")])


def _crc(row: Any) -> int:  # noqa: ANN401
    return zlib.crc32(row["index"].tobytes() + row["values"].tobytes())


def _table(found: Mapping[int, tuple[float, ...]], count: int, columns: int) -> NDArray[np.float64]:
    table = np.full((count, columns), math.nan)
    for index, values in found.items():
        table[index] = values
    return table
