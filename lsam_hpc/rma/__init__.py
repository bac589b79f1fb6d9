"""One-sided windows: mpi4py and numpy only, no torch.

Everything but making and closing a window works without the other ranks' help. Importing the package loads no MPI; that
is done when a name is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsam_hpc.lazy import attach

if TYPE_CHECKING:
    from lsam_hpc.rma.center import Center
    from lsam_hpc.rma.collective import agree, barrier, same, wait
    from lsam_hpc.rma.counter import Counter
    from lsam_hpc.rma.half import HalfCenter
    from lsam_hpc.rma.memory import check_shared_memory
    from lsam_hpc.rma.peers import Peers
    from lsam_hpc.rma.progress import Progress, reason

__all__ = [
    "Center",
    "Counter",
    "HalfCenter",
    "Peers",
    "Progress",
    "agree",
    "barrier",
    "check_shared_memory",
    "reason",
    "same",
    "wait",
]
_HOMES = {
    "Center": "center", "Counter": "counter", "HalfCenter": "half", "Peers": "peers", "Progress": "progress",
    "agree": "collective", "barrier": "collective", "check_shared_memory": "memory", "reason": "progress",
    "same": "collective", "wait": "collective",
}  # fmt: skip

__getattr__, __dir__ = attach(__name__, _HOMES)
