"""Distributes independent computations over the ranks of a landscape program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from lsam_hpc.tools.ranks import Ranks
from lsam_hpc.util.progress import counted

T = TypeVar("T")


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

    def work() -> dict[int, T]:
        return {index: jobs[index]() for index in counted(indices, title if ranks.is_first else None)}

    results = ranks.raise_on_all(work)
    parts = [results] if ranks.comm is None else ranks.comm.allgather(results)
    by_index = {index: result for part in parts for index, result in part.items()}
    return [by_index[index] for index in range(len(jobs))]
