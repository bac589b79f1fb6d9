"""The lock of a run directory: one job at a time, also on file systems without flock (NFS, Lustre).

It is a file made with O_EXCL that says who holds it; its modification time is the last heartbeat.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from lsam_hpc import rma
from lsam_hpc.errors import InputError
from lsam_hpc.rundir.holder import HEARTBEAT, NAME, Holder, Look, Progress, as_line, parsed, read_lock
from lsam_hpc.rundir.processes import Process, lives, this_process
from lsam_hpc.trajectory.provenance import machine
from lsam_hpc.util.log import get_logger

if TYPE_CHECKING:
    from mpi4py import MPI

STALE = 60.0  # s without a heartbeat after which a job on another machine has ended; NFS shows times up to 60 s late
PATIENCE = 15.0  # s that a job waits for another one, which may be ending
_POLL = 0.2  # s between two looks at another job's lock
_LOG = get_logger(__name__)


class RunLock:
    """The lock of a run directory, for all ranks of a job; a context that releases it at the end.

    Args:
        run_dir: the run directory.
        token: the same on every rank, and in no other job.
        ranks: the process of each rank.
        rank: this process's rank.
        on_lost: called in a thread with a message if another job has taken the lock over, because this one was
            suspended for longer than `STALE`. Default: the message is logged.
    """

    def __init__(
        self,
        run_dir: Path,
        token: str,
        ranks: Sequence[Process],
        rank: int,
        on_lost: Callable[[str], object] = _LOG.error,
    ) -> None:
        self.path = run_dir / NAME
        self.unresponsive: Callable[[], Collection[int]] = list  # ranks that send no heartbeats
        self.steps: Callable[[], Sequence[int]] = tuple  # local steps of each rank
        self.total: int | None = None  # steps of all ranks that the job will take
        self._run_dir, self._rank, self._size, self._on_lost = run_dir, rank, len(ranks), on_lost
        here = [number for number, process in enumerate(ranks) if process.machine == ranks[rank].machine]
        about = machine()
        self._me = Holder(
            token,
            about["job_id"],
            about["host"],
            ranks[rank].number,
            rank,
            [ranks[number] for number in here],
            len(ranks) - len(here),
            here,
        )
        self._content = as_line(self._me)
        self._made: list[Path] = []  # folders
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._send_heartbeats, name="lsam-run-lock", daemon=True)

    def acquire(self) -> None:
        """Take the lock, on one rank; wait for a job that is ending, and take over what a dead job left.

        Raises:
            InputError: another job holds it, or the directory cannot be written.
        """
        if self._run_dir.exists() and not self._run_dir.is_dir():
            raise InputError(f"--out: expected a directory, found a file: {self._run_dir}")
        try:
            self._make_folders()
            self._take()
        except OSError as error:
            self._remove_folders()
            raise InputError(
                f"--out: expected a directory that can be written, found {self._run_dir}: {error.strerror}"
            ) from error

    def start(self) -> None:
        """Start to send heartbeats, on each rank: the lowest responsive one sends them."""
        self._thread.start()

    def release(self) -> None:
        """Remove the lock, if this is the lowest responsive rank, and folders made for it that are empty."""
        self._ended.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(HEARTBEAT)
        if self.speaks():
            with contextlib.suppress(OSError):  # a directory that is gone or read-only: the lock becomes stale
                seen = read_lock(self.path)
                if seen is not None and seen.holder is not None and seen.holder.token == self._me.token:
                    self.path.unlink()
            self._remove_folders()

    def speaks(self) -> bool:
        """Return whether this is the lowest responsive rank."""
        return self._rank == min(set(range(self._size)) - set(self.unresponsive()), default=0)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def heartbeat(self) -> None:
        """Touch the lock; if a lower rank that failed is named in it, name this one.

        Raises:
            OSError: the disk failed.
        """
        try:
            file = os.open(self.path, os.O_RDWR)
        except FileNotFoundError:
            if self._run_dir.is_dir():
                with contextlib.suppress(FileExistsError):
                    self._create()
            return
        try:
            holder = parsed(os.read(file, 2**24).partition(b"\n")[0])
            if holder is None:
                return
            if holder.token != self._me.token:
                self._ended.set()
                self._on_lost(
                    f"--out: expected a run directory that only this job uses, found {self._run_dir} taken over by "
                    f"{holder}: this job was suspended"
                )
                return
            progress = as_line(Progress(list(self.steps()), sorted(self.unresponsive()), self.total))
            os.utime(file)  # before the writes, which a full disk may refuse
            if holder.rank != self._rank:
                os.pwrite(file, self._content, 0)
            os.pwrite(file, progress, len(self._content))
            os.ftruncate(file, len(self._content) + len(progress))
        finally:
            os.close(file)

    def _send_heartbeats(self) -> None:
        while not self._ended.wait(HEARTBEAT):
            if self.speaks():
                with contextlib.suppress(OSError):  # the next one may succeed; the job goes on without its disk
                    self.heartbeat()

    def _make_folders(self) -> None:
        missing = [folder for folder in (self._run_dir, *self._run_dir.parents) if not folder.exists()]
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):  # another job makes the same ones
                folder.mkdir()
                self._made.append(folder)

    def _remove_folders(self) -> None:
        with contextlib.suppress(OSError):  # not empty: a run was written
            while self._made:
                self._made.pop().rmdir()

    def _create(self) -> None:
        """Make the file; raise FileExistsError if there is one."""
        file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        try:
            os.write(file, self._content)
            os.fsync(file)
        except OSError:
            self.path.unlink()
            raise
        finally:
            os.close(file)

    def _take(self) -> None:
        began, first, changed, age = time.monotonic(), None, time.monotonic(), 0.0
        while True:
            with contextlib.suppress(FileExistsError):
                self._create()
                return
            look = read_lock(self.path)
            if look is None:
                continue
            now = time.monotonic()
            if first is None:
                age = max(0.0, self._time_of_the_disk() - look.touched)
            if look != first:
                beats = first is not None and first.holder is not None and look.holder is not None
                first, changed, age = look, now, 0.0 if beats else age
                seen_alive = beats
            silence = now - changed + age
            alive = lives(look.holder.processes) if look.holder is not None else None
            if alive is False and look.holder is not None and look.holder.elsewhere == 0:
                self._take_over(look, "which has ended")
            elif alive is not True and silence >= STALE:
                self._take_over(look, f"which sent no heartbeat for {silence:.0f} s")
            elif (alive or seen_alive) and now - began >= PATIENCE:
                raise InputError(
                    f"--out: expected a run directory that no other job uses, found {self._run_dir} in use by "
                    f"{look.name}, last heartbeat {silence:.0f} s ago"
                )
            else:
                if now - began < _POLL:
                    limit = PATIENCE if alive else STALE
                    _LOG.info("%s is in use by %s; waiting up to %.0f s for it to end", self._run_dir, look.name, limit)
                time.sleep(_POLL)

    def _take_over(self, look: Look, why: str) -> None:
        """Remove a stale lock, unless another job did so first.

        One job at a time does it: between looking and removing, no other one can put its own in the place.
        """
        guard = self.path.with_name(f"{NAME}.takeover")
        try:
            os.close(os.open(guard, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
        except FileExistsError:
            other = read_lock(guard)
            if other is not None and self._time_of_the_disk() - other.touched >= STALE:  # it was killed meanwhile
                guard.unlink(missing_ok=True)
            time.sleep(_POLL)
            return
        try:
            if read_lock(self.path) == look:
                self.path.unlink()
                _LOG.info("took over %s from %s, %s", self._run_dir, look.name, why)
        finally:
            guard.unlink()

    def _time_of_the_disk(self) -> float:
        """Return the present time on the clock of the file system, which may differ from this host's."""
        probe = self.path.with_name(f"{NAME}.{self._me.token}")
        try:
            probe.write_bytes(b"x")
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)


def lock(run_dir: Path, comm: MPI.Intracomm, on_lost: Callable[[str], object] = _LOG.error) -> RunLock:
    """Lock a run directory for a job; collective.

    Args:
        run_dir: the run directory; it is made if it does not exist.
        comm: communicator of all ranks.
        on_lost: as for `RunLock`.

    Returns:
        The lock, which the caller releases on every rank.

    Raises:
        InputError: another job holds it, or the directory cannot be written; on all ranks alike.
    """
    token = comm.bcast(uuid.uuid4().hex)
    held = RunLock(run_dir, token, comm.allgather(this_process()), comm.rank, on_lost)
    rma.raise_on_all(comm, lambda: held.acquire() if comm.rank == 0 else None)
    held.start()
    return held
