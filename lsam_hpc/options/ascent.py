"""Options of the ascent: radius, gradient, metric and coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, get_args

from lsam_hpc.options.option import NOT_NEGATIVE, PART, option
from lsam_hpc.options.schedules import ScalarOrSchedule

Ascent = Literal["exact", "stale", "parallel"]
ASCENTS: tuple[Ascent, ...] = get_args(Ascent)
Metric = Literal["l2", "adaptive"]
MaskName = Literal["all", "norm", "random", "fisher"]


class MaskObject(Protocol):
    """A mask from `lsam_hpc.optim.masks`, or an object with the same methods."""

    partial: bool
    elementwise: bool


AnyMask: TypeAlias = MaskName | MaskObject


@dataclass(frozen=True)
class AscentOptions:
    """The ascent of SAM: e = rho * g / (|g| + gamma)."""

    rho: ScalarOrSchedule = option(0.05, "ascent radius, in the units of the parameters", NOT_NEGATIVE, positional=True)
    gamma: float = option(1e-12, "constant that keeps the ascent's division finite", NOT_NEGATIVE, positional=True)
    ascent: Ascent = option(
        "exact",
        "gradient of the ascent. exact: at x, two passes per step; stale: of the last step, one pass; parallel: SAMPa, "
        "two passes that can run at the same time",
    )
    metric: Metric = option("l2", "metric of the ascent; adaptive: ASAM")
    eta: float = option(0.01, "eta of the adaptive metric", NOT_NEGATIVE)
    mask: AnyMask = option(
        "all",
        "coordinates that the ascent moves; norm: parameters of normalization layers; random, fisher: half of all",
    )
    interpolation: float = option(0.2, "weight of the look-ahead gradient in the parallel ascent", PART)
