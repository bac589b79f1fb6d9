"""Independent computations shared out over the ranks of a landscape program."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from lsam_hpc.tools.ranks import Ranks

T = TypeVar("T")
PAUSE = 10.0  # s between lines of progress where stderr is no terminal


def share(ranks: Ranks, jobs: Sequence[Callable[[], T]], title: str | None) -> list[T]:
    """Run every job on one of the ranks, in turn, and return all results, in order, on all of them.

    Args:
        ranks: of the program.
        jobs: the same on every rank; each gives the same result on any.
        title: of the line of progress that the first rank shows; None: none.

    Raises:
        InputError: a job raised it.
    """
    rank, size = (0, 1) if ranks.comm is None else (ranks.comm.rank, ranks.comm.size)
    mine = range(rank, len(jobs), size)
    progress = _Progress(title if ranks.first else None, len(mine))

    def work() -> dict[int, T]:
        found = {}
        for index in mine:
            found[index] = jobs[index]()
            progress.one()
        return found

    own = ranks.agree(work)
    parts = [own] if ranks.comm is None else ranks.comm.allgather(own)
    together = {index: result for part in parts for index, result in part.items()}
    return [together[index] for index in range(len(jobs))]


class _Progress:
    """A line on stderr that says how far it is and how long it will take."""

    def __init__(self, title: str | None, count: int) -> None:
        self._title, self._count, self._done = title, count, 0
        self._began = self._shown = time.monotonic()

    def one(self) -> None:
        """Count a job that is done."""
        self._done += 1
        now = time.monotonic()
        terminal, last = sys.stderr.isatty(), self._done == self._count
        if self._title is None or not (last or terminal or now - self._shown > PAUSE):
            return
        self._shown = now
        left = (now - self._began) / self._done * (self._count - self._done)
        text = f"{self._title}: {self._done} of {self._count}, " + (
            f"{now - self._began:.0f} s" if last else f"about {left:.0f} s left")  # fmt: skip
        print(f"\r\x1b[K{text}" if terminal else text, end="\n" if last or not terminal else "", file=sys.stderr,
              flush=True)  # fmt: skip
