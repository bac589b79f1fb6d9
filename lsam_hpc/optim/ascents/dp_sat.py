"""DP-SAT: along the gradient that the last step descended along, so that a step takes one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from lsam_hpc.optim.ascents.base import Ascending, OnePass
from lsam_hpc.optim.gradients import Gradients, clear, present
from lsam_hpc.optim.shards import clones

# These read the gradients and do not write into them, at least where the group's options are as in `_reads_only`.
_READERS = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


class DPSAT(OnePass):
    """e = e(g), g the gradient that the last step descended along, taken at x + e; the first step is the base's.

    With an Opacus optimizer as the base, g is the clipped and noisy gradient, so that the ascent costs no privacy.

    Source: Park et al. 2023, "Differentially Private Sharpness-Aware Training" (arXiv 2306.05651), algorithm 1;
    without Opacus it is the same ascent with the gradient as it is.
    """

    name = "dp-sat"
    remembers = True

    def __init__(self) -> None:
        super().__init__()
        self._hook: Any = None

    def gradients(self, sam: Ascending, scaler: GradScaler | None) -> tuple[Gradients, bool]:
        """Return the last step's gradients."""
        last = self.last
        if private_step(sam.base) is None:
            self.last = Gradients([], [])
            return last, True
        # Opacus skips the steps of virtual mini-batches: the next one needs the same gradients again.
        return Gradients(last.params, [g.clone() for g in last.grads]), True

    def before_descent(self, sam: Ascending) -> None:
        """Keep the gradients for the next step."""
        private = private_step(sam.base)
        if private is None:
            self._keep(sam)
        else:  # the gradients become private within the base's step, if it takes one
            self._hook = private.register_step_pre_hook(lambda *_: self._keep(sam))

    def after_descent(self, sam: Ascending) -> None:
        """Remove the gradients from the parameters, so that nothing overwrites them before the next ascent."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        elif not sam.keeps_gradients:
            clear(self.last.params)

    def _keep(self, sam: Ascending) -> None:
        last = present(sam.parameters)
        copied = sam.keeps_gradients or not _reads_only(sam.base)
        self.last = Gradients(last.params, clones(last.grads)) if copied else last


def private_step(base: Optimizer) -> Optimizer | None:
    """Return the optimizer inside an Opacus optimizer, whose step gets the private gradients; None for others."""
    inner = getattr(base, "original_optimizer", None)
    return inner if isinstance(inner, Optimizer) and hasattr(base, "pre_step") else None


def _reads_only(base: Optimizer) -> bool:
    """Return True if the optimizer's step is known to leave the gradients as they are."""
    writes = ("nesterov", "fused")  # Nesterov's momentum is added to the gradients; fused kernels unscale them
    return (
        type(base) in _READERS
        and not base._optimizer_step_pre_hooks
        and not any(group.get(option) for group in base.param_groups for option in writes)
    )
