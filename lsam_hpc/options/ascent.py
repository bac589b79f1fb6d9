"""Options of the ascent: radius, gradient, metric and coordinates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, get_args

from lsam_hpc.errors import InputError
from lsam_hpc.options.option import NOT_NEGATIVE, PART, Range, check, option
from lsam_hpc.options.schedules import ScalarOrSchedule

Ascent = Literal["sam", "dp-sat", "asyncsam", "sampa", "msam", "center", "gam"]
ASCENTS: tuple[Ascent, ...] = get_args(Ascent)
Metric = Literal["l2", "adaptive"]
MaskName = Literal["all", "norm", "random", "ssam-f", "ssam-d", "fsam", "tensors", "sl-sam", "adasap"]
MASKS: tuple[MaskName, ...] = get_args(MaskName)


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
        "sam",
        "direction of the ascent. sam: gradient at x, two passes a step; dp-sat: gradient of the last step, one pass; "
        "asyncsam: gradient at the last step's x, on part of its mini-batch; sampa: two passes that can run at the "
        "same time; msam: momentum, one pass; center: the center's last movement, one pass; gam: the gradient norm's "
        "too, four passes",
    )
    metric: Metric = option("l2", "metric of the ascent; adaptive: ASAM")
    eta: float = option(0.01, "eta of the adaptive metric", NOT_NEGATIVE)
    mask: AnyMask = option(
        "all",
        "coordinates that the ascent moves. norm: of normalization layers, SAM-ON; random: at random; ssam-f: of the "
        "largest Fisher information, by single samples; ssam-d: dropped and regrown; fsam: of the largest Fisher "
        "information, by a mini-batch; tensors: whole tensors at random, ESAM; sl-sam: layers that a bandit chooses, "
        "in the descent too; adasap: all, each neuron with its own radius",
    )
    mask_density: float = option(
        0.5,
        "part of the coordinates, tensors or layers that the mask selects; not used by all, norm and adasap",
        Range(above=0, most=1),
    )
    mask_refresh: int | None = option(
        None,
        "ascents between two masks; default: 100 of random and fsam, 1000 of ssam-f and ssam-d",
        Range(least=1, whole=True, unit="ascents"),
    )
    mask_pattern: str = option(
        "none", "pattern N:M of the mask ssam-f: N of every M coordinates move, in place of mask_density; none"
    )
    interpolation: float = option(0.2, "weight of the look-ahead gradient (ascent sampa)", PART)
    ascent_fraction: float = option(
        0.25, "share of the mini-batch for the ascent's gradient (ascent asyncsam)", Range(above=0, most=1)
    )
    norm_rho: float = option(0.2, "radius of the gradient norm's ascent (ascent gam)", NOT_NEGATIVE)
    gam_beta1: float = option(0.6, "weight of the gradient at x + e; 1 - it: of the norm's gradient (ascent gam)", PART)
    gam_beta2: float = option(0.5, "weight of the third gradient in what is decomposed (ascent gam)", NOT_NEGATIVE)
    gam_gamma: float = option(0.03, "weight of the part perpendicular to the descent (ascent gam)", NOT_NEGATIVE)
    same_random_numbers: bool = option(
        False, "draw the same random numbers in all passes of a step, for example the same dropout masks"
    )


def check_ascent(options: AscentOptions) -> None:
    """Raise InputError for the first option that is out of range."""
    check(options)
    parse_pattern(options.mask_pattern)


def parse_pattern(pattern: str) -> tuple[int, int] | None:
    """Return N and M of a pattern "N:M"; None for "none".

    Raises:
        InputError: it is neither, or N is not from 1 to M - 1.
    """
    if pattern == "none":
        return None
    n, _, m = pattern.partition(":")
    if not (n.isdecimal() and m.isdecimal() and 0 < int(n) < int(m)):
        raise InputError(f"mask_pattern: expected none or N:M with N from 1 to M - 1, such as 2:4, found {pattern!r}")
    return int(n), int(m)
