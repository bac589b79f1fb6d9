"""The keyword arguments of SAM, and their check."""

from __future__ import annotations

import inspect
import warnings
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from lsam_hpc.errors import InputError
from lsam_hpc.optim.gradients import check_real
from lsam_hpc.optim.masks import Mask, resolve
from lsam_hpc.optim.perturbation import HALF
from lsam_hpc.optim.shards import any_sharded, refuse_flat, refuse_sharded
from lsam_hpc.options.ascent import AscentOptions, check_ascent
from lsam_hpc.options.option import argument
from lsam_hpc.options.schedules import evaluate


class Average(Protocol):
    """Averages the gradients of several ranks with the same parameters."""

    ascent: bool  # average the ascent's gradient too; False: each rank ascends along its own (m-SAM)

    def __call__(self, parameters: list[Tensor]) -> None:
        """Replace the gradients by their mean over the ranks; collective."""


@dataclass(frozen=True)
class SAMArguments(AscentOptions):
    """The keywords of SAM: options and objects."""

    pair: distributed.ProcessGroup | None = argument()
    model: nn.Module | None = argument()
    average: Average | None = argument()


def check_arguments(base: Optimizer, arguments: SAMArguments) -> None:
    """Raise InputError for the first wrong argument of SAM, before anything is changed."""
    name = type(base).__name__
    if not isinstance(base, Optimizer) or hasattr(base, "perturb"):
        raise InputError(f"base: expected a torch optimizer that takes plain steps, found {name}")
    closure = inspect.signature(type(base).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise InputError(f"base: expected an optimizer whose step needs no closure, found {name}")
    if "sam" in base.__dict__:
        raise InputError("base: expected an optimizer that no other SAM wraps, found one that another SAM wraps")
    mask = resolve(arguments)
    check_ascent(arguments)
    pair = arguments.pair
    params = [p for group in base.param_groups for p in group["params"]]
    check_parts(params, mask)
    if arguments.model is None:
        refuse_sharded("model", params, "pass model=, whose gathered parameters must follow x + e")
    if pair is not None:
        refuse_sharded("pair", params, "both ranks of a pair need all parameters")
    if arguments.average is not None:
        refuse_sharded("average", params, "fully_shard averages the gradients itself")
    check_combination(base, arguments)
    if pair is not None and (ranks := distributed.get_world_size(pair)) != 2:
        raise InputError(f"pair: expected a group of 2 ranks, found {ranks}")
    evaluate("rho", arguments.rho, 0)
    for group in base.param_groups:
        evaluate("rho", group.get("rho", arguments.rho), 0)
        check_real(group["params"])
    half = next((p.dtype for p in params if p.dtype in HALF), None)
    if half is not None:
        warnings.warn(
            f"parameters: x + e is rounded to {half}, so that e moves few coordinates: keep the parameters in float32 "
            "and use torch.autocast",
            stacklevel=5,
        )


def check_combination(base: Optimizer, arguments: SAMArguments) -> None:
    """Raise InputError if the ascent is unknown, or does not fit the base optimizer, the mask or another argument."""
    check_ascent(arguments)
    resolve(arguments)  # raises if the mask needs another ascent
    ascent, name = arguments.ascent, type(base).__name__
    if arguments.pair is not None and ascent not in ("sampa", "asyncsam"):
        raise InputError(f"pair: expected the ascent sampa or asyncsam, found {ascent}")
    if arguments.average is not None and ascent == "sampa":
        raise InputError("average: expected another ascent than sampa, whose ranks would look ahead to other points")
    if hasattr(base, "original_optimizer") and ascent not in ("dp-sat", "msam", "center"):
        raise InputError(
            f"ascent: expected dp-sat, msam or center with {name}, whose step makes the gradients private, "
            f"found {ascent}, which would use them before"
        )
    if ascent == "msam" and not any(group.get("momentum") or group.get("betas") for group in base.param_groups):
        raise InputError(f"ascent: expected a base optimizer with momentum for msam, found {name} without")


def check_parts(params: list[Tensor], mask: Mask) -> None:
    """Raise InputError if the ranks hold parts of the parameters in a way that SAM or its mask cannot use."""
    refuse_flat(params)
    if mask.elementwise or mask.in_steps:
        refuse_sharded("mask", params, f"{type(mask).__name__} selects among the coordinates of all ranks")
    if mask.partial and any_sharded(params) and not any(mask.selects(p) for p in params):
        raise InputError("mask: expected one made after fully_shard, found one that selects no parameter of base")
