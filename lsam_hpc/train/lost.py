"""The end of a job, under ULFM, that cannot continue without a rank it has lost: one line, and code 3."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mpi4py import MPI

from lsam_hpc.rma import faults
from lsam_hpc.util import launcher


@contextmanager
def resumable() -> Iterator[None]:
    """Return a context in which the loss of a rank ends this one, if `LSAM` does not recover from it.

    Before training starts, it ends at once: nothing has been trained, and no rank may wait for the lost one.
    """
    watch = faults.watch()
    watch.on_failure = lambda failed: _leave(failed, "before training started") if _starting() else None
    try:
        yield
    except Exception as error:
        # Not only errors of MPI: between nodes, collective calls may return anything when a rank is lost.
        if not watch.explains(error):
            raise
        _leave(watch.failed, "before training started" if _starting() else f"({error})")


def leave_with(chain: frozenset[int]) -> None:
    """End this rank as soon as another one of its chain is lost: what it holds of the model is of no use alone.

    From a thread, because a pass may wait for the lost rank for ever.

    Args:
        chain: the ranks of the chain, as numbered in COMM_WORLD.
    """
    watch = faults.watch()
    before = watch.on_failure

    def leave(failed: frozenset[int]) -> None:
        before(failed)
        lost = sorted(chain & failed)
        if lost:
            speaks = MPI.COMM_WORLD.rank == min(chain - failed)
            text = f"lsam train: rank {', '.join(map(str, lost))} ended, and with it its chain {sorted(chain)}"
            if speaks:
                print(text, file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)  # Open MPI reports only this end to the other ranks

    watch.on_failure = leave


def _starting() -> bool:
    return launcher.watch().starting


def _leave(failed: frozenset[int], why: str) -> None:
    """End this rank; the lowest one that is left says why."""
    ranks = ", ".join(map(str, sorted(failed)))
    speaks = MPI.COMM_WORLD.rank == min(set(range(MPI.COMM_WORLD.size)) - failed)
    launcher.leave(f"lsam train: stopped: rank {ranks} ended {why}" if speaks else "")
