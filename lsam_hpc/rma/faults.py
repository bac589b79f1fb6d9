"""Ranks that have failed, under User Level Failure Mitigation (ULFM), as with Open MPI's `mpirun --with-ft ulfm`.

Without ULFM nothing is watched, and no rank counts as failed. A failure is a fact about the process's world, so there
is one watch per process: it enters MPI 50 times per second, because failures become known only there.

Source: Bland et al. 2013, "Post-failure recovery of MPI communication capability", Int. J. HPC Applications 27(3).
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections.abc import Callable
from functools import cache

from mpi4py import MPI

from lsam_hpc.errors import RankLostError

_VARIABLE = "OMPI_MCA_mpi_ft_enable"  # set by mpirun --with-ft ulfm
POLL = 0.02  # s between two looks
_CONFIRMED = 2.0  # s after a failed call in which the failure of a rank becomes known
_CLASSES = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED)


def survivable() -> bool:
    """Return whether this job was started with ULFM, so that it can continue without a rank that fails."""
    return os.environ.get(_VARIABLE, "0") not in ("0", "false")


class Watch:
    """Looks in a daemon thread for ranks of COMM_WORLD that have failed.

    Attributes:
        failed: their ranks in COMM_WORLD.
        on_failure: called in the thread with the failed ranks when a rank fails. Default: nothing.
    """

    def __init__(self) -> None:
        self.failed: frozenset[int] = frozenset()
        self.on_failure: Callable[[frozenset[int]], object] = len
        self._left_behind: frozenset[int] = frozenset()
        self._lost_at = 0.0
        self._stop = threading.Event()
        if survivable():
            self._thread = threading.Thread(target=self._run, name="lsam-failures", daemon=True)
            self._thread.start()
            atexit.register(self._halt)  # the thread must end before MPI_Finalize

    @property
    def lost(self) -> bool:
        """True if a rank has failed that the others have not left behind yet: what waits for it is given up."""
        return not self.failed <= self._left_behind

    @property
    def seconds(self) -> float:
        """Time since a rank was lost; 0 if none is."""
        return time.monotonic() - self._lost_at if self.lost else 0.0

    def leave_behind(self, ranks: frozenset[int]) -> None:
        """Do not count failed ranks as lost any more: the others have formed a communicator without them."""
        self._left_behind |= ranks

    def explains(self, error: Exception) -> bool:
        """Return whether an error of a call comes from the failure of a rank."""
        if isinstance(error, RankLostError):
            return True
        if not survivable():
            return False
        deadline = time.monotonic() + _CONFIRMED
        while not self.lost and time.monotonic() < deadline:
            time.sleep(POLL)
        return self.lost or (isinstance(error, MPI.Exception) and error.Get_error_class() in _CLASSES)

    def _halt(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        world = MPI.COMM_WORLD
        group = world.Get_group()
        while not self._stop.wait(POLL):
            MPI.COMM_SELF.Iprobe(0)
            found = world.Get_failed()
            if found.size > len(self.failed):
                self._lost_at = time.monotonic()
                self.failed = frozenset(MPI.Group.Translate_ranks(found, range(found.size), group))
                self.on_failure(self.failed)
            found.Free()


@cache
def watch() -> Watch:
    """Return this process's watch; the first call starts it, after MPI has started."""
    return Watch()


def numbers_in_world(comm: MPI.Comm) -> list[int]:
    """Return the rank in COMM_WORLD of each rank of a communicator."""
    group = comm.Get_group()
    return list(MPI.Group.Translate_ranks(group, range(group.size), MPI.COMM_WORLD.Get_group()))
