"""The interfaces between an optimizer and its ascent."""

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
        """True if all radii are the number 0, at construction and now."""

    def begin_step(self, scaler: GradScaler | None = None) -> None:
        """Prepare a step, before the parameters first move."""

    def ascend(self, ascent: Gradients, *, keep: bool = False) -> None:
        """Move to x + e along gradients, which are overwritten unless `keep` is True."""

    def perturb(self, scaler: GradScaler | None = None) -> None:
        """Begin a step and move to x + e."""

    def restore(self) -> None:
        """Move back to x."""


class Ascent(ABC):
    """Computes the gradient that a step ascends along.

    `passes` runs the forward and backward passes of a step. Loops in phases call `gradients` by `SAM.perturb`. Then the
    optimizer unscales, averages, and calls `before_descent` and `after_descent` around the base optimizer's step.
    """

    name: str
    in_phases = True  # perturb(), restore() and update() can take the step
    freezes = False  # BatchNorm statistics are frozen at x + e
    keeps = False  # gradients are kept for the next step

    def __init__(self) -> None:
        self.last = Gradients([], [])  # kept from the last step

    @abstractmethod
    def passes(self, sam: Ascending, closure: Callable[[], Any], scaler: GradScaler | None) -> Any:  # noqa: ANN401
        """Compute the gradient to descend along into the parameters, which end at x; return the closure's loss.

        Args:
            sam: the optimizer.
            closure: computes the loss and its gradient at the present parameters.
            scaler: gradient scaler of mixed precision.
        """

    @abstractmethod
    def gradients(self, sam: Ascending, scaler: GradScaler | None) -> tuple[Gradients, bool]:
        """Return the gradients to ascend along, and whether they are finite."""

    @abstractmethod
    def unscaled_by(self, sam: Ascending) -> tuple[object, ...]:
        """Return the keys under which a scaler may have unscaled the gradients; none if `passes` unscales them."""

    def before_descent(self, sam: Ascending) -> None:
        """Read the gradients, finite and unscaled, before the base optimizer's step."""

    def after_descent(self, sam: Ascending) -> None:
        """Clean up after the base optimizer's step."""

    def forget(self) -> None:
        """Drop the gradients of earlier steps: the next ascent is as in the first step."""
        self.last = Gradients([], [])
