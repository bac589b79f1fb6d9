"""Landscape-Smoothed SAM (arXiv 2509.03110) on MPI: asynchronous chains that share a center.

Importing the package loads none of MPI, Horovod, h5py and matplotlib; each is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsam_hpc.util.lazy import attach

if TYPE_CHECKING:
    from lsam_hpc.distributed.lsam import LSAM
    from lsam_hpc.errors import InputError, RankLostError
    from lsam_hpc.optim.sam import SAM
    from lsam_hpc.util.version import __version__

__all__ = ["LSAM", "SAM", "InputError", "RankLostError", "__version__"]
__getattr__, __dir__ = attach(
    __name__,
    {
        "LSAM": "distributed.lsam",
        "SAM": "optim.sam",
        "InputError": "errors",
        "RankLostError": "errors",
        "__version__": "util.version",
    },
)
