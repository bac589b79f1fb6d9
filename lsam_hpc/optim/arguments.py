"""The keyword arguments of SAM, and their check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from lsam_hpc.errors import InputError
from lsam_hpc.optim.gradients import check_real
from lsam_hpc.optim.masks import resolve
from lsam_hpc.options.ascent import AscentOptions
from lsam_hpc.options.option import argument, check
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
    if not isinstance(base, Optimizer) or hasattr(base, "perturb"):
        raise InputError(f"base: expected a torch optimizer that takes plain steps, found {type(base).__name__}")
    if "sam" in base.__dict__:
        raise InputError("base: expected an optimizer that no other SAM wraps, found one that another SAM wraps")
    resolve(arguments.mask)
    check(arguments)
    ascent, pair = arguments.ascent, arguments.pair
    if pair is not None and (ascent != "parallel" or distributed.get_world_size(pair) != 2):
        raise InputError(f"pair: expected two ranks and the parallel ascent, found {ascent} ascent")
    if arguments.average is not None and ascent == "parallel":
        raise InputError("average: expected the exact or the stale ascent, found the parallel one")
    evaluate("rho", arguments.rho, 0)
    for group in base.param_groups:
        evaluate("rho", group.get("rho", arguments.rho), 0)
        check_real(group["params"])
