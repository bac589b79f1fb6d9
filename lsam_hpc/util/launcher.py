"""Watches a rank's launcher: one that is killed cannot end its ranks, and they would train on for hours, unwatched."""

from __future__ import annotations

import errno
import io
import os
import sys
import threading
import time
from functools import cache

from lsam_hpc.util.processes import ancestors, reparented

STOPPED = 3  # exit code of a job that was stopped and can be resumed
POLL = 0.5  # s between two looks
STEP = 7.5  # s that a rank may take to end its step; twice its longest step if that is more
ENDING = 300.0  # s for the last checkpoint, or the last evaluation


class LauncherWatch:
    """Notices that this rank's launcher has ended, and ends the process if it does not end by itself.

    The training loop reads `gone` between steps, then writes a checkpoint and ends with code 3. A rank that hangs, for
    example in a collective call with a dead rank, is ended with the same code. So is one that has not `started`, which
    has nothing to save. A process without a launcher is not watched.
    """

    def __init__(self) -> None:
        self._above = ancestors()
        self._gone_at: float | None = None
        self._read_at: float | None = None  # time of the last read of `gone`
        self._longest = 0.0  # s between two reads
        self._ending_at: float | None = None

    def start(self) -> None:
        """Start to watch, in a daemon thread."""
        if self._above:
            survive_broken_pipes()
            threading.Thread(target=self._run, name="lsam-launcher", daemon=True).start()

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
            time.sleep(POLL)
            if self.check() and (late := self._late(time.monotonic())):
                leave(f"lsam train: stopped: {self.reason}, and {late}")

    def _late(self, now: float) -> str | None:
        """Return why this rank has to be ended, None if it still may end by itself."""
        if self._read_at is None or self._gone_at is None:
            return "training has not started"
        if self._ending_at is not None:
            after = max(self._ending_at, self._gone_at)
            return f"the rank did not end within {ENDING:g} s" if now > after + ENDING else None
        limit = max(STEP, 2 * self._longest)
        return f"no step ended within {limit:.3g} s" if now > self._gone_at + limit else None


@cache
def watch() -> LauncherWatch:
    """Return this process's watch."""
    return LauncherWatch()


def leave(message: str) -> None:
    """End this process at once, with code 3: MPI_Finalize would wait for the launcher or for dead ranks."""
    print(message, file=sys.stderr, flush=True)
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
