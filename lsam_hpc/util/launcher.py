"""Watches a rank's launcher, and the other ranks of the node until training starts.

A launcher that is killed cannot end its ranks: they would train on for hours. A rank that is killed before the ranks
exchange heartbeats leaves the others in collective calls for ever, if the launcher lets them live.
"""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import cache

from lsam_hpc.util.launched import launched_rank, on_node
from lsam_hpc.util.pmix import survive_lost_connection
from lsam_hpc.util.processes import ancestors, ranks_of, reparented

STOPPED = 3  # exit code of a job that was stopped and can be resumed
POLL = 0.5  # s between two looks
STEP = 7.5  # s that a rank may take to end its step; twice its longest step if that is more
UNSEEN = 10.0  # s in which a launcher has started all ranks of a node
LOOKS = 3  # before the others end: a rank that ends regularly takes them along
ENDING = 300.0  # s for the last checkpoint, or the last evaluation
AFTER = 3.0  # s until the ranks that say nothing end: the launcher may end the one that speaks with the first that ends
TERM = 30.0  # s for a program's own handler of SIGTERM, as in Slurm (KillWait)

_LEAVING = threading.Lock()


class LauncherWatch:
    """Notices that this rank's launcher has ended, and ends the process if it does not end by itself.

    The training loop reads `gone` between steps, then writes a checkpoint and ends with code 3. A rank that hangs, for
    example in a collective call with a dead rank, is ended with the same code. So is one that has not `started`, which
    has nothing to save; it is ended, too, if another rank of the node has ended. Without a launcher nothing is watched.

    A program with a loop of its own is only guarded: it gets SIGTERM, and is ended.
    """

    def __init__(self) -> None:
        self._above = ancestors()
        self._watching = False
        self._survives = False  # the loss of PMIx's connection to the launcher
        self._gone_at: float | None = None
        self._read_at: float | None = None  # time of the last read of `gone`
        self._longest = 0.0  # s between two reads
        self._ending_at: float | None = None
        self._began = time.monotonic()
        self._seen: set[int] = set()  # the node's ranks
        self._looks = 0  # since a rank was missing
        self._alive: set[int] = set()  # the ranks alive at the first of these

    def start(self) -> None:
        """Start to watch, in a daemon thread."""
        if self._above and not self._watching:
            self._watching = True
            survive_broken_pipes()
            threading.Thread(target=self._run, name="lsam-launcher", daemon=True).start()

    def guard(self) -> None:
        """Guard a program with a loop of its own, in a daemon thread, unless it is watched already.

        Call it again when MPI has started: then Open MPI lets the program live until its handler of SIGTERM has ended.
        """
        if self._above and not self._watching:
            self._watching = True
            threading.Thread(target=self._guard, name="lsam-launcher", daemon=True).start()
        if self._above and not self._survives:
            self._survives = survive_lost_connection()

    @property
    def gone(self) -> bool:
        """True if the launcher has ended; the caller then ends the rank."""
        now = time.monotonic()
        self._longest = max(self._longest, now - (self._read_at or now))
        self._read_at = now
        if self._gone_at is not None:
            self.ending()
        return self._gone_at is not None

    @property
    def reason(self) -> str:
        """Why a job stops if its launcher has ended."""
        return f"its launcher, process {self._above[-1]}, has ended"

    @property
    def starting(self) -> bool:
        """True until training starts or ends."""
        return self._read_at is None and self._ending_at is None

    def started(self) -> None:
        """From now on the training loop reads `gone`."""
        self._read_at = time.monotonic()

    def ending(self) -> None:
        """From now on the rank ends by itself, within five minutes."""
        self._ending_at = self._ending_at or time.monotonic()

    def check(self) -> bool:
        """Look now; return True if the launcher has ended."""
        if self._gone_at is None and reparented(self._above):
            self._gone_at = time.monotonic()
        return self._gone_at is not None

    def _run(self) -> None:
        while True:
            if self.starting and (lost := self._lost()) and not self.check():
                leave(f"lsam train: stopped: {lost} before training started" if self._speaks() else "")
            time.sleep(POLL)
            if self.check() and (late := self._late(time.monotonic())):
                leave(f"lsam train: stopped: {self.reason}, and {late}")

    def _guard(self) -> None:
        while not self.check():
            time.sleep(POLL)
        if callable(signal.getsignal(signal.SIGTERM)):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(TERM)
        leave(f"lsam: stopped: {self.reason}")

    def _late(self, now: float) -> str | None:
        """Return why this rank has to be ended, None if it still may end by itself."""
        gone_at = self._gone_at or now
        if self._ending_at is not None:
            late = now > max(self._ending_at, gone_at) + ENDING
            return f"the rank did not end within {ENDING:g} s" if late else None
        if self._read_at is None:
            return "training has not started"
        limit = max(STEP, 2 * self._longest)
        return f"no step ended within {limit:.3g} s" if now > gone_at + limit else None

    def _lost(self) -> str | None:
        """Return which of the node's ranks have ended, None if none has."""
        alive = ranks_of(self._above[-1])
        self._seen |= alive
        few = len(self._seen) < on_node()[1] and time.monotonic() > self._began + UNSEEN
        if not self._looks:
            self._alive = alive
        missing = sorted(self._seen - self._alive)
        # Without this rank, the ranks cannot be seen: they were not started by the launcher itself.
        self._looks += launched_rank() in alive and (bool(missing) or few)
        if self._looks < LOOKS:
            return None
        if not missing:
            return f"{on_node()[1] - len(self._seen)} of {on_node()[1]} ranks on {os.uname().nodename} ended"
        return f"rank {', '.join(map(str, missing))} ended"

    def _speaks(self) -> bool:
        return launched_rank() == min(self._alive)


@cache
def watch() -> LauncherWatch:
    """Return this process's watch."""
    return LauncherWatch()


def leave(message: str) -> None:
    """End this process with code 3: MPI_Finalize would wait for the launcher or for dead ranks.

    Args:
        message: for the user; empty: another rank says it, before this one ends.
    """
    _LEAVING.acquire()  # never released: a second thread that comes here only waits
    if message:
        with suppress(OSError):  # the launcher read it
            print(message, file=sys.stderr, flush=True)
    else:
        time.sleep(AFTER)
    os._exit(STOPPED)


def survive_broken_pipes() -> None:
    """Let writes to stdout and stderr succeed after their reader, the launcher, has ended."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        stream.flush()
        raw = _Lasting(stream.fileno(), "w", closefd=False)
        text = io.TextIOWrapper(
            io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=name == "stderr" or stream.isatty()
        )
        setattr(sys, name, text)


class _Lasting(io.FileIO):
    """A file whose writes are dropped once its reader has ended."""

    def write(self, data: object, /) -> int:
        """Write bytes; return their number."""
        try:
            return super().write(data)  # type: ignore[arg-type]
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):  # EIO: the reader had a terminal
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            return super().write(data)  # type: ignore[arg-type]
