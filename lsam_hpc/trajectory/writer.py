"""Writes one rank's log in a background thread, so that training never waits for the disk."""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory import schema
from lsam_hpc.trajectory.backlog import Backlog
from lsam_hpc.trajectory.earlier import Earlier
from lsam_hpc.trajectory.head import Head, creator
from lsam_hpc.trajectory.log import RankLog
from lsam_hpc.trajectory.newfile import reason
from lsam_hpc.trajectory.openfile import DAMAGE
from lsam_hpc.trajectory.room import Room
from lsam_hpc.trajectory.sketch import CountSketch
from lsam_hpc.trajectory.snapshot import Snapshots, check_states
from lsam_hpc.trajectory.store import Store

RETRY = 10.0  # s between two attempts to continue a log after the disk failed
_ALL = 2**62  # more steps than any log has
PATIENCE = 60.0  # s that `flush` and `close` wait for the disk at most


class TrajectoryWriter:
    """Writes a rank's HDF5 file, which can be read while it is written (SWMR) and after the writer was killed.

    Calls only put rows into memory, from any thread; a background thread writes them when a chunk is full, and every
    `flush_seconds`. When the disk is too slow, optional values, sketches and snapshots are dropped first, then rows;
    the table /dropped counts them. If the disk fails or is nearly full, one warning is given and nothing is written
    until there is room again.

    Args:
        run_dir: the run directory; it must exist.
        rank: of this process.
        layout: (name, shape) of each parameter, in the order of the flat vectors.
        attributes: the root attributes of `schema.ATTRIBUTES` that are not marked `written`.
        flush_seconds: largest time between logging a row and writing it to disk, s. Default 5.
        sketch: the map that makes the sketches; None (default): no sketches.
        sketched: states that can be sketched. Default: sample and center.
        snapshots: which states are stored in full, and how; None (default): none.
        curvature: make the table of `curvature`. Default False.
        shard: number of this rank in its chain, of which each rank writes the snapshots of its part of the parameters
            into a file of its own; the layout is then that of the part. Default: the rank is a chain.
        locking: of the file, as in h5py.File: True, False or "best-effort"; None (default): HDF5's own choice. False
            for file systems without locks (some Lustre and NFS mounts).
        reserve_bytes: free disk space to leave to other files, such as checkpoints, B. Default 0.
        limit_bytes: largest size of the file without its snapshots, B. Default: no limit.
        queue_bytes: memory for rows that wait for the disk, B; each snapshot needs its size besides. Default 64 MiB.
        earlier: the log of an earlier attempt: its rows are copied, and this log replaces it. Default: none.

    Raises:
        InputError: the file exists already, cannot be made, or an attribute is missing or not in the schema.
    """

    def __init__(
        self,
        run_dir: Path,
        rank: int,
        layout: Sequence[tuple[str, Sequence[int]]],
        attributes: Mapping[str, str | int | float],
        flush_seconds: float = 5.0,
        *,
        sketch: CountSketch | None = None,
        sketched: Sequence[str] = ("sample", "center"),
        snapshots: Snapshots | None = None,
        curvature: bool = False,
        shard: int | None = None,
        locking: bool | str | None = None,
        reserve_bytes: int = 0,
        limit_bytes: int | None = None,
        queue_bytes: int = 2**26,
        earlier: Earlier | None = None,
    ) -> None:
        required = {name for name, a in schema.ATTRIBUTES.items() if not a.written}
        if wrong := attributes.keys() ^ required:
            raise InputError(
                f"attributes: expected those of the schema, found a difference in {', '.join(sorted(wrong))}"
            )
        check_states("sketched", tuple(sketched))
        written = {"format": schema.FORMAT, "schema_version": schema.VERSION, "creator": creator(), "rank": rank}
        head = Head(
            {name: schema.ATTRIBUTES[name].kind(value) for name, value in {**attributes, **written}.items()},
            [(name, tuple(map(int, shape))) for name, shape in layout],
            sketch,
        )
        if sketch is not None and sketch.size != head.size:
            raise InputError(f"sketch: expected a map of {head.size} elements, found one of {sketch.size}")
        self.path = run_dir / (schema.rank_file(rank) if shard is None else schema.shard_file(rank, shard))
        self.sketcher = sketch
        self.snapshots = snapshots
        self.error: str | None = None  # why the disk failed
        self.size = head.size
        self._start = float(attributes["start_time"])
        self._flush_seconds = flush_seconds
        self._news: deque[str] = deque()  # for the caller's thread, which warns
        self._warned = False
        self._room = Room(self.path, reserve_bytes, limit_bytes)
        self._retry_at = 0.0
        self._closed = False
        fill = None
        if earlier is not None:
            earlier.check(head, snapshots)
            fill = partial(earlier.copy, snapshots=snapshots)
        self._make_store = partial(
            Store,
            self.path,
            head,
            sketched=sketched if sketch else (),
            snapshots=snapshots,
            curvature=curvature,
            locking=locking,
        )
        self._store = self._make_store(fill=fill)
        self._backlog = Backlog(queue_bytes)
        if earlier is not None:
            self._backlog.dropped |= earlier.dropped()
        self._counted = dict(self._backlog.dropped)
        self._unflushed = 0
        for name, table in self._store.tables.items():
            self._backlog.full_at[name] = table.to_full_chunk
        self._thread = threading.Thread(target=self._write, name="trajectory-writer", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of the tables in the file."""
        return tuple(self._store.tables)

    @property
    def dropped(self) -> dict[str, int]:
        """Numbers of rows, optional values and states that were dropped so far."""
        return dict(self._backlog.dropped)

    def step(self, **columns: float) -> None:
        """Log a step that ends now: the columns of `schema.STEP` without `time`; optional ones may be missing."""
        self._put("step", {"time": time.time() - self._start, **columns})

    def exchange(self, began: float, **columns: float) -> None:
        """Log an exchange: the columns of `schema.EXCHANGE` without `time`; `began` is its start by time.time()."""
        self._put("exchange", {"time": began - self._start, **columns})

    def curvature(self, **columns: float) -> None:
        """Log a measurement that ends now: the columns of `schema.CURVATURE` without `time`."""
        if "curvature" not in self._store.tables:
            raise InputError("curvature: expected a log that was made with a table of it, found none")
        self._put("curvature", {"time": time.time() - self._start, **columns})

    def sketch(self, state: str, values: NDArray[np.float32], iteration: int, version: int = -1) -> None:
        """Log a sketch.

        Args:
            state: of `schema.STATES`.
            values: sketch of the state by the writer's CountSketch, shape (groups, buckets); it is copied.
            iteration: local steps before the state was taken.
            version: of the center that was read then; -1 (default): not known.

        Raises:
            InputError: the writer was made without sketches of this state, or the shape is wrong.
        """
        shape = (len(self.sketcher.groups), self.sketcher.buckets) if self.sketcher else None
        self._put_state(f"sketch/{state}", np.array(values, np.float32), shape, iteration, version)

    def snapshot(self, state: str, vector: NDArray[np.floating[Any]], iteration: int, version: int = -1) -> None:
        """Log a state in full.

        Args:
            state: of `schema.STATES`.
            vector: the flat vector, shape (P,); it is copied.
            iteration: local steps before the state was taken.
            version: of the center that was read then; -1 (default): not known.

        Raises:
            InputError: the writer was made without snapshots of this state, or the size is wrong.
        """
        values = self.snapshots.encode(vector) if self.snapshots else vector
        self._put_state(f"snapshot/{state}", values, (self.size,), iteration, version)

    def flush(self, seconds: float = PATIENCE) -> bool:
        """Write all rows logged so far to the file, where readers see them, for example at a checkpoint.

        Args:
            seconds: largest time to wait for the disk, s. Default 60.

        Returns:
            Whether all rows are written.
        """
        done = self._thread.is_alive() and self._backlog.flush(seconds)
        self._warn_once()
        return done and self.error is None

    def close(self, result: Mapping[str, float] | None = None) -> None:
        """Write the remaining rows and, for a run that ended, its result, keys of `schema.RESULT`; close the file."""
        names = [c.name for c in schema.RESULT]
        if result is not None and (wrong := result.keys() - set(names)):
            raise InputError(f"result: expected keys of the schema, found {', '.join(sorted(wrong))}")
        if self._closed:
            return
        if result is not None:
            self.flush()  # to make room for the result
            self._backlog.put("result", {name: result.get(name) for name in names})
        self._closed = True
        self._backlog.close()
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self._warn(f"the disk took more than {PATIENCE:.0f} s: the end of the log may be missing")
        self._warn_once()
        atexit.unregister(self.close)

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put(self, table: str, row: Mapping[str, Any]) -> None:
        self._backlog.put(table, row)
        if self._news or any(self._backlog.dropped.values()):
            self._warn_once()

    def _put_state(
        self, table: str, values: NDArray[Any], shape: tuple[int, ...] | None, iteration: int, version: int
    ) -> None:
        if table not in self._store.tables:
            kind, _, state = table.partition("/")
            raise InputError(f"{kind}: expected a state that has a table, found {state!r}")
        if values.shape != shape:
            raise InputError(f"{table}: expected shape {shape}, found {values.shape}")
        now = time.time() - self._start
        self._put(table, {"iteration": iteration, "time": now, "version": version, "values": values})

    def _warn_once(self) -> None:
        """Warn of a disk that fails or works again, and once of dropped rows; called in the caller's thread."""
        while self._news:
            self._warned = True
            self._warn(self._news.popleft())
        if any(self._backlog.dropped.values()) and not self._warned:
            self._warned = True
            self._warn("the disk is too slow: parts of the log are left out, counted in /dropped")

    def _warn(self, text: str) -> None:
        warnings.warn(f"{self.path}: {text}", stacklevel=5)

    def _write(self) -> None:
        """Move rows from the backlog to the file until the backlog is closed."""
        due = time.monotonic() + self._flush_seconds
        closed = False
        while not closed:
            requested, closed = self._backlog.wait(due - time.monotonic())
            everything = closed or requested > 0 or time.monotonic() >= due
            if everything:
                self._look_for_room(at_once=closed)
            for table in self._store.tables:
                self._move(table, everything=everything)
            if everything:
                self._flush()
                self._backlog.flush_done(requested)
                due = time.monotonic() + self._flush_seconds
        with self._stopping_at_errors():
            self._store.close()

    def _look_for_room(self, *, at_once: bool) -> None:
        """Stop or continue the log as the disk allows."""
        if self.error is not None and (at_once or time.monotonic() >= self._retry_at):
            self._retry_at = time.monotonic() + RETRY
            self._reopen()
        if self.error is None and self._room.check(self._store.bytes):
            if self._room.reason:
                self._flush()
                self._news.append(f"the log stops here and training continues: {self._room.reason}")
            else:
                self._news.append("the log goes on")

    def _reopen(self) -> None:
        """Make the file again, with its intact rows, after an error of the disk; if that fails, it stays as it is."""
        with contextlib.suppress(*DAMAGE):
            if not self._room.fits(self.path.stat().st_size):
                return
            earlier = Earlier(RankLog(self.path, partial=True), _ALL)
            self._store = self._make_store(fill=partial(earlier.copy, snapshots=self.snapshots))
            self.error = None
            self._news.append("the log goes on")

    def _move(self, table: str, *, everything: bool) -> None:
        rows = self._backlog.take(table, everything=everything)
        if self._room.holds_back(table):
            self._backlog.count_lost(len(rows), "states" if "/" in table else "rows")
        else:
            if self.error is None:
                with self._stopping_at_errors():
                    self._store.tables[table].append(rows)
                    self._backlog.full_at[table] = self._store.tables[table].to_full_chunk
            self._unflushed += len(rows)
        self._backlog.release(rows)

    def _flush(self) -> None:
        if self.error is None:
            with self._stopping_at_errors():
                self._count_dropped()
                self._store.flush()
        if self.error is not None:
            self._backlog.count_lost(self._unflushed)
        self._unflushed = 0

    def _count_dropped(self) -> None:
        if self._backlog.dropped != self._counted and (not self._room.reason or self._closed):
            self._counted = dict(self._backlog.dropped)
            now = time.time() - self._start
            self._store.tables["dropped"].append([(now, *(self._counted[c.name] for c in schema.DROPPED[1:]))])

    @contextlib.contextmanager
    def _stopping_at_errors(self) -> Iterator[None]:
        """Keep the first error of the disk, and write nothing more after it."""
        try:
            yield
        except (OSError, RuntimeError, ValueError, TypeError, MemoryError) as error:
            if self.error is None:
                self.error = reason(error)
                self._news.append(f"the log stops here and training continues: {self.error}")
                self._retry_at = time.monotonic() + RETRY
                self._store.abandon()
