"""What an optimizer asks of its ascent, and what an ascent may do with the optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from lsam_hpc.optim.amp import Pass
from lsam_hpc.optim.arguments import Average
from lsam_hpc.optim.batchnorm import FrozenBatchNormStats
from lsam_hpc.optim.gradients import Gradients
from lsam_hpc.optim.perturbation import Perturbation


class Ascending(Protocol):
    """An optimizer as its ascent sees it: `SAM`."""

    base: Optimizer
    perturbation: Perturbation
    frozen: FrozenBatchNormStats
    average: Average | None
    passes: list[Pass]
    keeps_gradients: bool
    overflow: bool

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters of all groups, in order."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's groups."""

    @property
    def radii_are_0(self) -> bool:
        """Whether no group has a radius, now or later."""

    def begin_step(self, scaler: GradScaler | None = None) -> None:
        """Do what comes before the first move of a step."""

    def ascend(self, ascent: Gradients, *, keep: bool = False) -> None:
        """Move to x + e along gradients, which are overwritten unless told to keep them."""

    def perturb(self, scaler: GradScaler | None = None) -> None:
        """Begin a step and move to x + e."""

    def restore(self) -> None:
        """Move back to x."""


class Ascent(ABC):
    """Where the ascent's gradient comes from.

    `passes` makes the forward and backward passes of a step. Loops in phases call `gradients` by `SAM.perturb`; then
    the optimizer unscales, averages, and calls `before_descent` and `after_descent` around the base optimizer's step.
    """

    name: str
    in_phases = True  # whether perturb(), restore() and update() can take its step
    freezes = False  # whether BatchNorm's statistics stand still at x + e
    keeps = False  # whether a step leaves gradients to the next one

    def __init__(self) -> None:
        self.last = Gradients([], [])  # what the step before left

    @abstractmethod
    def passes(self, sam: Ascending, closure: Callable[[], Any], scaler: GradScaler | None) -> Any:  # noqa: ANN401
        """Leave the gradient to descend along in the parameters, which are at x; return the closure's loss.

        Args:
            sam: the optimizer.
            closure: computes the loss and its gradient at the parameters as they are.
            scaler: of mixed precision.
        """

    @abstractmethod
    def gradients(self, sam: Ascending, scaler: GradScaler | None) -> tuple[Gradients, bool]:
        """Return the gradients to ascend along, and whether they are finite."""

    @abstractmethod
    def unscaled_by(self, sam: Ascending) -> tuple[object, ...]:
        """Return what a scaler may have unscaled the descent's gradients by; nothing if the passes have done that."""

    def before_descent(self, sam: Ascending) -> None:
        """Look at the descent's gradients, finite and unscaled, before the base optimizer's step."""

    def after_descent(self, sam: Ascending) -> None:
        """Do what comes after the base optimizer's step."""

    def forget(self) -> None:
        """Begin anew, as in the first step."""
        self.last = Gradients([], [])
