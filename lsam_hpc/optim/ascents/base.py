"""The interfaces between an optimizer and its ascent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from torch.utils import _pytree

from lsam_hpc.errors import InputError
from lsam_hpc.optim.amp import Pass, forget, unscale
from lsam_hpc.optim.arguments import Average
from lsam_hpc.optim.batchnorm import FrozenBatchNormStats
from lsam_hpc.optim.gradients import Gradients, present, set_grads, take
from lsam_hpc.optim.perturbation import Perturbation, global_norm
from lsam_hpc.optim.random_state import repeating
from lsam_hpc.optim.state import known_in, numbered


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
        """True if all radii are 0 at this step."""

    def ascend(
        self, ascent: Gradients, *, keep: bool = False, radius: float | None = None, further: bool = False
    ) -> None:
        """Move to x + e along gradients: see `SAM.ascend`."""

    def climb(self, scaler: GradScaler | None) -> None:
        """Move to x + e along the gradients that the ascent returns."""

    def restore(self) -> None:
        """Move back to x."""


class Closure:
    """Computes the loss and its gradient at the present parameters: one pass of a step.

    Args:
        function: the user's closure; it takes the mini-batch if there is one.
        batch: the step's mini-batch. None: the function takes no argument.
        same_random_numbers: start every pass from the random state of the first.
    """

    def __init__(self, function: Callable[..., Any], batch: object, same_random_numbers: bool) -> None:  # noqa: FBT001
        self.batch = batch
        self._function = repeating(function) if same_random_numbers else function

    def __call__(self, batch: object = None) -> Any:  # noqa: ANN401 - what the user's closure returns
        """Run the pass on a mini-batch; default: the step's."""
        batch = self.batch if batch is None else batch
        with torch.enable_grad():
            return self._function() if batch is None else self._function(batch)

    def require_batch(self, ascent: str) -> None:
        """Raise InputError unless the step has a mini-batch."""
        if self.batch is None:
            raise InputError(
                f"step: expected step(closure, batch=...) with the ascent {ascent}, where closure takes the batch, "
                "found no batch"
            )


class Ascent(ABC):
    """Computes the gradients of a step.

    `passes` runs the forward and backward passes of a step. Loops in phases call `gradients` by `SAM.perturb`. Then the
    optimizer unscales, averages, and calls `before_descent` and `after_descent` around the base optimizer's step.
    """

    name: str
    in_phases = True  # perturb(), restore() and update() can take the step
    freezes = False  # BatchNorm statistics are frozen at x + e
    begins_with_ascent = False  # the gradient of a step's first pass is used by the ascent only
    remembers = False  # `last` is used in the next step
    along_gradients = True  # the ascent's direction is a gradient, and so is reversed in groups that maximize

    def __init__(self) -> None:
        self.last = Gradients([], [])  # kept from the last step
        self.last_batch: object = None  # the mini-batch of the last step, if the next one needs it

    @abstractmethod
    def passes(self, sam: Ascending, closure: Closure, scaler: GradScaler | None) -> Any:  # noqa: ANN401
        """Compute the gradient to descend along into the parameters, which end at x; return the closure's loss.

        Args:
            sam: the optimizer.
            closure: computes the loss and its gradient at the present parameters.
            scaler: gradient scaler of mixed precision.
        """

    @abstractmethod
    def gradients(self, sam: Ascending, scaler: GradScaler | None) -> tuple[Gradients, bool]:
        """Return the gradients to ascend along, which the ascent overwrites, and whether they are finite."""

    @abstractmethod
    def unscaled_by(self, sam: Ascending) -> tuple[object, ...]:
        """Return the keys under which a scaler may have unscaled the gradients; none if `passes` unscales them."""

    def before_descent(self, sam: Ascending) -> None:
        """Read the gradients, finite and unscaled, before the base optimizer's step."""

    def after_descent(self, sam: Ascending) -> None:
        """Clean up after the base optimizer's step."""

    def state_dict(self, params: Sequence[Tensor]) -> dict[str, Any]:
        """Return what the next step needs of earlier ones; params: all parameters of the optimizer, in order."""
        last = dict(zip(*self.last, strict=True))
        grads, kept = numbered(last, params, torch.zeros_like) if self.remembers else ({}, [])
        state: dict[str, Any] = {"ascent": self.name, "last": grads, "kept": kept}
        return state if self.last_batch is None else {**state, "batch": self.last_batch}

    def load_state_dict(self, state: dict[str, Any], params: Sequence[Tensor]) -> None:
        """Load what `state_dict` returned; what another ascent needs of earlier steps is left out."""
        if state.get("ascent") != self.name:
            self.forget()
            return
        last = known_in(state["last"], state["kept"], params)
        self.last = Gradients([params[i] for i in last], list(last.values()))
        device = params[0].device
        self.last_batch = _pytree.tree_map(lambda v: v.to(device) if isinstance(v, Tensor) else v, state.get("batch"))

    def forget(self) -> None:
        """Drop what earlier steps left: the next ascent is as in the first step."""
        self.last, self.last_batch = Gradients([], []), None


class OnePass(Ascent):
    """An ascent along a direction that is known before the step: the step takes one pass, at x + e."""

    def passes(self, sam: Ascending, closure: Closure, scaler: GradScaler | None) -> Any:  # noqa: ANN401
        """Run the pass at x + e."""
        sam.climb(scaler)
        try:
            return closure()
        finally:
            sam.restore()

    def unscaled_by(self, sam: Ascending) -> tuple[object, ...]:
        """Return the base optimizer, which the caller may have unscaled, and SAM: the step has one pass only."""
        return sam.base, sam


class ClosureOnly(Ascent):
    """An ascent whose passes are at points or on mini-batches that a loop in phases does not know."""

    in_phases = False

    def one_pass(self, sam: Ascending, closure: Closure, scaler: GradScaler | None) -> Any:  # noqa: ANN401
        """Run one pass at x, where all radii are 0; the next ascent is as in the first step."""
        self.forget()
        loss = one_pass(sam, closure, scaler)
        gradients, finite = collect(sam, 0, scaler)
        set_grads(gradients)
        sam.overflow = not finite
        return loss

    def gradients(self, sam: Ascending, scaler: GradScaler | None) -> tuple[Gradients, bool]:
        """Raise RuntimeError: the step needs a closure."""
        raise RuntimeError(f"perturb: the ascent {self.name} works by step(closure) only")

    def unscaled_by(self, sam: Ascending) -> tuple[object, ...]:
        """Return no key: `passes` unscales each pass."""
        return ()


def one_pass(sam: Ascending, closure: Closure, scaler: GradScaler | None) -> Any:  # noqa: ANN401
    """Compute the gradient at x, which is x + e with rho = 0: the step is the base optimizer's."""
    loss = closure()
    sam.ascend(Gradients([], []))  # moves nothing; subclasses publish x + e here
    sam.restore()
    norm = global_norm(present(sam.parameters).grads)
    sam.perturbation.grad_norm = norm if scaler is None else norm / scaler.get_scale()  # 1 if it is disabled
    sam.perturbation.norm = torch.zeros_like(norm)
    return loss


def collect(sam: Ascending, number: int, scaler: GradScaler | None) -> tuple[Gradients, bool]:
    """Take the gradients of a pass from the parameters, unscaled; return them and whether they are finite.

    Args:
        sam: the optimizer.
        number: of the pass in its step.
        scaler: gradient scaler of mixed precision.
    """
    forget(scaler, sam.passes[number])
    finite = unscale(scaler, sam.passes[number])
    taken = take(sam.parameters)
    # Copy views: the next pass may overwrite their buffer, such as a bucket of DistributedDataParallel.
    return Gradients(taken.params, [g.clone() if g._base is not None else g for g in taken.grads]), finite
