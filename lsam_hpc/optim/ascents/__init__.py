"""The ascents: which gradient a step ascends along; one class in one module for each method."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsam_hpc.optim.ascents.async_sam import AsyncSAM
from lsam_hpc.optim.ascents.base import Ascent
from lsam_hpc.optim.ascents.center import CenterMovement
from lsam_hpc.optim.ascents.dp_sat import DPSAT
from lsam_hpc.optim.ascents.gam import GAM, Weights
from lsam_hpc.optim.ascents.msam import MSAM
from lsam_hpc.optim.ascents.sam import SharpnessAware
from lsam_hpc.optim.ascents.sampa import SAMPa

if TYPE_CHECKING:
    from lsam_hpc.optim.arguments import SAMArguments

__all__ = ["Ascent", "make_ascent"]


def make_ascent(arguments: SAMArguments) -> Ascent:
    """Return the ascent that the arguments name."""
    if arguments.ascent == "sampa":
        return SAMPa(arguments.interpolation, arguments.pair)
    if arguments.ascent == "asyncsam":
        return AsyncSAM(arguments.ascent_fraction, arguments.pair)
    if arguments.ascent == "gam":
        return GAM(arguments.norm_rho, Weights(arguments.gam_beta1, arguments.gam_beta2, arguments.gam_gamma))
    others: dict[str, type[SharpnessAware | DPSAT | MSAM | CenterMovement]] = {
        "sam": SharpnessAware,
        "dp-sat": DPSAT,
        "msam": MSAM,
        "center": CenterMovement,
    }
    return others[arguments.ascent]()
