"""Distributes independent computations over the ranks of a landscape program."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from lsam_hpc.tools.ranks import Ranks

T = TypeVar("T")
PAUSE = 10.0  # s between progress lines if stderr is no terminal


def share(ranks: Ranks, jobs: Sequence[Callable[[], T]], title: str | None) -> list[T]:
    """Run the jobs on the ranks, round-robin, and return all results, in the order of the jobs, on all ranks.

    Args:
        ranks: the ranks of the program.
        jobs: functions, the same list on every rank; a job's result must not depend on the rank.
        title: title of the progress line on rank 0; None: show no progress.

    Raises:
        InputError: a job raised it.
    """
    rank, size = (0, 1) if ranks.comm is None else (ranks.comm.rank, ranks.comm.size)
    indices = range(rank, len(jobs), size)
    progress = Progress(title if ranks.is_first else None, len(indices))

    def work() -> dict[int, T]:
        done = {}
        for index in indices:
            done[index] = jobs[index]()
            progress.advance()
        return done

    results = ranks.raise_on_all(work)
    parts = [results] if ranks.comm is None else ranks.comm.allgather(results)
    by_index = {index: result for part in parts for index, result in part.items()}
    return [by_index[index] for index in range(len(jobs))]


class Progress:
    """A line on stderr with the number of finished jobs and an estimate of the time left."""

    def __init__(self, title: str | None, count: int) -> None:
        self._title, self._count, self._done = title, count, 0
        self._began = self._shown = time.monotonic()

    def advance(self) -> None:
        """Count a finished job."""
        self._done += 1
        self._count = max(self._count, self._done)
        now = time.monotonic()
        terminal, last = sys.stderr.isatty(), self._done == self._count
        if self._title is None or not (last or terminal or now - self._shown > PAUSE):
            return
        self._shown = now
        remaining = (now - self._began) / self._done * (self._count - self._done)
        text = f"{self._title}: {self._done} of {self._count}, " + (
            f"{now - self._began:.0f} s" if last else f"about {remaining:.0f} s left"
        )
        print(
            f"\r\x1b[K{text}" if terminal else text,
            end="\n" if last or not terminal else "",
            file=sys.stderr,
            flush=True,
        )
