"""The optimizers, without MPI. Importing the package does not import torch, so options can be checked quickly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsam_hpc.util.lazy import attach

if TYPE_CHECKING:
    from lsam_hpc.optim.center import Center, LocalCenter
    from lsam_hpc.optim.curvature import TopEigenvalue
    from lsam_hpc.optim.lsam import LocalLSAM
    from lsam_hpc.optim.record import Exchange
    from lsam_hpc.optim.sam import SAM

__all__ = ["SAM", "Center", "Exchange", "LocalCenter", "LocalLSAM", "TopEigenvalue"]
_HOMES = {
    "LocalLSAM": "lsam",
    "SAM": "sam",
    "Center": "center",
    "Exchange": "record",
    "LocalCenter": "center",
    "TopEigenvalue": "curvature",
}
__getattr__, __dir__ = attach(__name__, _HOMES)
