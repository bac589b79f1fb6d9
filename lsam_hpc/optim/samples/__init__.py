"""Methods that select, weight or change the samples of a mini-batch; one module for each."""

from __future__ import annotations

from lsam_hpc.optim.samples.ausam import AUSAM
from lsam_hpc.optim.samples.batchnorm import adversarial_statistics, split_batchnorm
from lsam_hpc.optim.samples.conadv import ConAdv, conadv_loss
from lsam_hpc.optim.samples.esam import ESAM
from lsam_hpc.optim.samples.selection import Chosen, Losses, Selection
from lsam_hpc.optim.samples.step import Weighting, sample_step

__all__ = [
    "AUSAM",
    "ESAM",
    "Chosen",
    "ConAdv",
    "Losses",
    "Selection",
    "Weighting",
    "adversarial_statistics",
    "conadv_loss",
    "sample_step",
    "split_batchnorm",
]
