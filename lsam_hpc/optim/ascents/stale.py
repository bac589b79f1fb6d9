"""The stale ascent: along the gradient that the last step descended along, so that a step takes one pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler

from lsam_hpc.optim.ascents.base import Ascending, Ascent
from lsam_hpc.optim.gradients import Gradients, clear, present


class Stale(Ascent):
    """e = e(g), g the gradient that the last step descended along; the first step is the base optimizer's.

    Source: Jo et al. 2025, "Asynchronous Sharpness-Aware Minimization For Fast and Accurate Deep Learning"
    (arXiv 2503.11147), at a delay of one, with the gradient at x + e in place of the one at x.
    """

    name = "stale"
    keeps = True

    def passes(self, sam: Ascending, closure: Callable[[], Any], scaler: GradScaler | None) -> Any:  # noqa: ANN401
        """Run the pass at x + e."""
        sam.perturb(scaler)
        try:
            return closure()
        finally:
            sam.restore()

    def gradients(self, sam: Ascending, scaler: GradScaler | None) -> tuple[Gradients, bool]:
        """Return the last step's gradients, which the ascent overwrites."""
        last, self.last = self.last, Gradients([], [])
        return last, True

    def unscaled_by(self, sam: Ascending) -> tuple[object, ...]:
        """Return the base optimizer, which the caller may have unscaled, and SAM: the step has one pass only."""
        return sam.base, sam

    def before_descent(self, sam: Ascending) -> None:
        """Keep the gradients for the next step."""
        last = present(sam.parameters)
        # SGD with Nesterov momentum overwrites the gradients.
        copied = sam.keeps_gradients or any(group.get("nesterov") for group in sam.param_groups)
        self.last = Gradients(last.params, list(torch._foreach_clone(last.grads))) if copied else last

    def after_descent(self, sam: Ascending) -> None:
        """Remove the gradients from the parameters, so that nothing overwrites them before the next ascent."""
        if not sam.keeps_gradients:
            clear(self.last.params)
