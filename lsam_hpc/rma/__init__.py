"""One-sided windows: mpi4py and numpy only, no torch.

Everything but making and closing a window works without the other ranks' help.
"""

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
