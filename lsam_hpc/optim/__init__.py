"""The optimizers: torch only, no MPI. Importing the package loads no torch: its options are checked without."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsam_hpc.lazy import attach

if TYPE_CHECKING:
    from lsam_hpc.optim.center import Center, LocalCenter
    from lsam_hpc.optim.lsam import LSAM
    from lsam_hpc.optim.record import Exchange
    from lsam_hpc.optim.sam import SAM

__all__ = ["LSAM", "SAM", "Center", "Exchange", "LocalCenter"]
_HOMES = {"LSAM": "lsam", "SAM": "sam", "Center": "center", "Exchange": "record", "LocalCenter": "center"}
__getattr__, __dir__ = attach(__name__, _HOMES)
