"""The ascents: which gradient a step ascends along; one class in one module for each."""

from __future__ import annotations

from torch import distributed

from lsam_hpc.optim.ascents.base import Ascent
from lsam_hpc.optim.ascents.exact import Exact
from lsam_hpc.optim.ascents.parallel import Parallel
from lsam_hpc.optim.ascents.stale import Stale

__all__ = ["Ascent", "make_ascent"]


def make_ascent(name: str, interpolation: float = 0.2, pair: distributed.ProcessGroup | None = None) -> Ascent:
    """Return the ascent of a name in `options.ascent.ASCENTS`; the other arguments are for the parallel ascent."""
    if name == "parallel":
        return Parallel(interpolation, pair)
    return Stale() if name == "stale" else Exact()
