"""Shared data in one-sided MPI windows; needs mpi4py and numpy, not torch.

Creating and closing a window is collective; everything else works without the other ranks' help. Importing the package
does not load MPI; the first use of a name does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsam_hpc.util.lazy import attach
from lsam_hpc.util.preflight import needed_transports

if TYPE_CHECKING:
    from lsam_hpc.rma.center import Center
    from lsam_hpc.rma.collective import barrier, broadcast, raise_on_all, require_equal, wait_without_spinning
    from lsam_hpc.rma.counter import Counter
    from lsam_hpc.rma.half_precision import HalfPrecisionCenter
    from lsam_hpc.rma.memory import check_shared_memory
    from lsam_hpc.rma.peer_table import PeerTable
    from lsam_hpc.rma.progress import ProgressThread, why_progress_needed

__all__ = [
    "Center",
    "Counter",
    "HalfPrecisionCenter",
    "PeerTable",
    "ProgressThread",
    "barrier",
    "broadcast",
    "check_shared_memory",
    "raise_on_all",
    "require_equal",
    "wait_without_spinning",
    "why_progress_needed",
]
_HOMES = {
    "Center": "center",
    "Counter": "counter",
    "HalfPrecisionCenter": "half_precision",
    "PeerTable": "peer_table",
    "ProgressThread": "progress",
    "barrier": "collective",
    "broadcast": "collective",
    "check_shared_memory": "memory",
    "raise_on_all": "collective",
    "require_equal": "collective",
    "wait_without_spinning": "collective",
    "why_progress_needed": "progress",
}
_load, __dir__ = attach(__name__, _HOMES)


def __getattr__(name: str) -> object:
    with needed_transports():  # loading a module may start MPI
        return _load(name)
