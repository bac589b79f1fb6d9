"""Methods that select, weight or change the samples of a mini-batch; one module for each."""

from __future__ import annotations

from lsam_hpc.optim.samples.ausam import AUSAM
from lsam_hpc.optim.samples.esam import ESAM
from lsam_hpc.optim.samples.selection import Chosen, Losses, Selection
from lsam_hpc.optim.samples.step import Weighting, sample_step

__all__ = ["AUSAM", "ESAM", "Chosen", "Losses", "Selection", "Weighting", "sample_step"]
