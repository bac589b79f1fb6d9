"""Evaluates points on MPI ranks from a shared queue, and saves each finished point, so that a kill loses none.

The queue is a counter in an MPI window: a rank takes the next point without waiting for others. Each rank appends its
finished points to its own file, so that a killed job loses only the points that were being evaluated.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.util.files import replace_file
from lsam_hpc.util.progress import Progress

if TYPE_CHECKING:
    from mpi4py import MPI

Work = Callable[[int], Sequence[float]]
OPTIONS = "options.json"
SYNC = 1.0  # smallest time between two fsync calls, in seconds: fsync may take much longer than a point
_FILES = "points-*.bin"


def evaluate(
    work: Work,
    count: int,
    columns: int,
    folder: Path | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    comm: MPI.Intracomm | None = None,
    title: str | None = None,
) -> NDArray[np.float64]:
    """Return the values of all points, shape (count, columns), the same on all ranks.

    Args:
        work: returns the values of a point, shape (columns,), from its index; the same on every rank.
        count: number of points.
        columns: number of values of a point.
        folder: where finished points are saved; saved points are not evaluated again. Default: none are saved.
        options: all that the values depend on; a folder with points of other options is an error.
        comm: the ranks that share the points; collective. Default: this process alone, without MPI.
        title: of the progress bar on rank 0. Default: no progress bar.

    Raises:
        InputError: the folder holds points of other options or cannot be written, or `work` raises it.
    """
    if comm is None or comm.size == 1:
        points = dict(_open(folder, dict(options or {}), columns, count))
        todo = [index for index in range(count) if index not in points]
        bar = Progress(title, count, "point", len(points))
        next_point, finished = itertools.count().__next__, itertools.count(len(points) + 1).__next__
        points.update(_loop(work, todo, next_point, bar, folder=folder, columns=columns, rank=0, finished=finished))
        return _table(points, count, columns)
    return _on_ranks(work, count, columns, folder, dict(options or {}), comm=comm, title=title)


def _on_ranks(
    work: Work,
    count: int,
    columns: int,
    folder: Path | None,
    options: dict[str, Any],
    *,
    comm: MPI.Intracomm,
    title: str | None,
) -> NDArray[np.float64]:
    from lsam_hpc.rma import ProgressThread, raise_on_all, why_progress_needed
    from lsam_hpc.rma.counter import AtomicArray

    # Only rank 0 reads the folder: on a network file system other ranks may see other contents.
    saved = raise_on_all(comm, lambda: _open(folder, options, columns, count) if comm.rank == 0 else {})
    before: dict[int, tuple[float, ...]] = comm.bcast(saved)
    todo = [index for index in range(count) if index not in before]
    with ExitStack() as stack:
        cells = AtomicArray(comm, 2)  # on rank 0: points taken, points finished
        stack.callback(cells.close)
        if why_progress_needed(comm) is not None:
            stack.callback(ProgressThread(comm).close)
        bar = Progress(title if comm.rank == 0 else None, count, "point", len(before))

        def next_point() -> int:
            return cells.add(0, 0)

        def finished() -> int:
            return len(before) + cells.add(0, 1) + 1

        def loop() -> dict[int, tuple[float, ...]]:
            return _loop(work, todo, next_point, bar, folder=folder, columns=columns, rank=comm.rank, finished=finished)

        evaluated = raise_on_all(comm, loop)
    points = dict(before)
    for part in comm.allgather(evaluated):
        points.update(part)
    return _table(points, count, columns)


def _loop(
    work: Work,
    todo: Sequence[int],
    next_point: Callable[[], int],
    bar: Progress,
    *,
    folder: Path | None,
    columns: int,
    rank: int,
    finished: Callable[[], int],
) -> dict[int, tuple[float, ...]]:
    """Evaluate the points that this rank takes from the queue; return their values by index.

    `finished` counts a point, and returns the number of finished points of all ranks.
    """
    points: dict[int, tuple[float, ...]] = {}
    with ExitStack() as stack:
        stack.callback(bar.close)
        file = _PointFile(folder / f"points-{rank:04d}.bin", columns) if folder else None
        if file:
            stack.callback(file.close)
        while (place := next_point()) < len(todo):
            index = todo[place]
            points[index] = tuple(float(value) for value in work(index))
            if file:
                file.append(index, points[index])
            bar.reach(finished())
    return points


def _open(folder: Path | None, options: dict[str, Any], columns: int, count: int) -> dict[int, tuple[float, ...]]:
    """Make the folder if needed, and return the finished points in it."""
    if folder is None:
        return {}
    options = json.loads(json.dumps(options))  # in the form in which they are read from the file
    file = folder / OPTIONS
    try:
        folder.mkdir(exist_ok=True)
        if file.exists():
            _compare(folder, json.loads(file.read_text()), options)
        elif any(folder.glob(_FILES)):
            raise InputError(f"{folder}: expected {OPTIONS} beside the points, found none: remove the folder")
        else:
            text = json.dumps(options, indent=2) + "\n"
            replace_file(file, lambda opened: opened.write(text.encode()))
        return read_points(folder, columns, count)
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{folder}: expected a folder for finished points, found: {error}") from error


def _compare(folder: Path, old: Any, new: dict[str, Any]) -> None:  # noqa: ANN401 (JSON)
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
    """Return the values of the finished points in a folder, by index; incomplete or damaged records are left out.

    Args:
        folder: the folder given to `evaluate`.
        columns: number of values of a point.
        count: number of points; larger indices are left out.
    """
    kind = _record(columns)
    points = {}
    for file in sorted(folder.glob(_FILES)):
        stored = file.read_bytes()
        rows = np.frombuffer(stored[: len(stored) // kind.itemsize * kind.itemsize], kind)
        for row in rows:
            index = int(row["index"])
            if row["crc"] == _crc(row) and 0 <= index < count:
                points[index] = tuple(float(value) for value in row["values"])
    return points


class _PointFile:
    """A file of finished points to which one rank appends."""

    def __init__(self, path: Path, columns: int) -> None:
        self._path, self._kind = path, _record(columns)
        self._synced = time.monotonic()
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            # Cut off an incomplete last record of a killed program: it would shift the records after it.
            size = os.fstat(self._file).st_size
            os.ftruncate(self._file, size // self._kind.itemsize * self._kind.itemsize)
        except OSError as error:
            raise self._error(error.strerror) from error

    def append(self, index: int, values: tuple[float, ...]) -> None:
        """Write a point: it survives a kill from now on, and a crash of the machine at most `SYNC` seconds later."""
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
            raise self._error(error.strerror) from error
        if written != self._kind.itemsize:
            raise self._error("no space left")

    def close(self) -> None:
        try:
            self._sync()
        except OSError as error:
            raise self._error(error.strerror) from error
        finally:
            os.close(self._file)

    def _sync(self) -> None:
        os.fsync(self._file)
        self._synced = time.monotonic()

    def _error(self, reason: str | None) -> InputError:
        return InputError(f"{self._path}: expected a file that can be written, found: {reason}")


def _record(columns: int) -> np.dtype[np.void]:
    return np.dtype([("index", "<i8"), ("values", "<f8", (columns,)), ("crc", "<u4")])


def _crc(row: Any) -> int:  # noqa: ANN401 (a structured numpy scalar)
    return zlib.crc32(row["index"].tobytes() + row["values"].tobytes())


def _table(points: Mapping[int, tuple[float, ...]], count: int, columns: int) -> NDArray[np.float64]:
    table = np.full((count, columns), math.nan)
    for index, values in points.items():
        table[index] = values
    return table
