"""The arguments of SAM that say how the ascent is made, and what is wrong with them."""

from __future__ import annotations

from typing import Protocol, TypedDict

from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from lsam_hpc.errors import InputError
from lsam_hpc.optim.gradients import check_real
from lsam_hpc.optim.hyper import ASCENTS, METRICS, Ascent, Hyper, Metric, evaluate
from lsam_hpc.optim.masks import Mask, resolve


class Average(Protocol):
    """Makes one sampler of several ranks with the same parameters: their gradients become their mean."""

    ascent: bool  # the ascent's gradient too; else each rank climbs its own mini-batch's (m-SAM)

    def __call__(self, parameters: list[Tensor]) -> None:
        """Replace the gradients by their mean over the ranks; collective."""


class AscentOptions(TypedDict, total=False):
    """The keywords of SAM that say how the ascent is made; LSAM hands them on."""

    ascent: Ascent
    metric: Metric
    eta: float
    mask: str | Mask
    interpolation: float
    pair: distributed.ProcessGroup | None
    model: nn.Module | None
    average: Average | None


def check_options(
    base: Optimizer,
    rho: Hyper,
    gamma: float,
    *,
    ascent: str = "exact",
    metric: str = "l2",
    eta: float = 0.01,
    mask: str | Mask = "all",
    interpolation: float = 0.2,
    pair: distributed.ProcessGroup | None = None,
    model: nn.Module | None = None,
    average: Average | None = None,
) -> None:
    """Raise InputError for the first of SAM's arguments that is wrong, before anything is changed."""
    if not isinstance(base, Optimizer) or hasattr(base, "perturb"):
        raise InputError(f"base: expected a torch optimizer that takes plain steps, found {type(base).__name__}")
    if "sam" in base.__dict__:
        raise InputError("base: expected an optimizer of its own, found one that another SAM has taken")
    for name, value, known in (("ascent", ascent, ASCENTS), ("metric", metric, METRICS)):
        if value not in known:
            raise InputError(f"{name}: expected one of {', '.join(known)}, found {value!r}")
    if evaluate("interpolation", interpolation, 0) > 1:
        raise InputError(f"interpolation: expected a number from 0 to 1, found {interpolation!r}")
    if pair is not None and (ascent != "parallel" or distributed.get_world_size(pair) != 2):
        raise InputError(f"pair: expected two ranks and the parallel ascent, found {ascent} ascent")
    if average is not None and ascent == "parallel":
        raise InputError("average: expected the exact or the stale ascent, found the parallel one")
    for name, number in (("rho", rho), ("gamma", gamma), ("eta", eta)):
        evaluate(name, number, 0)
    resolve(mask)
    for group in base.param_groups:
        evaluate("rho", group.get("rho", rho), 0)
        check_real(group["params"])
