"""The step of radius 0: the gradient at x + e is that at x, so one pass will do, as the base optimizer takes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch.amp.grad_scaler import GradScaler

from lsam_hpc.optim.gradients import Gradients, check_dense, present
from lsam_hpc.optim.hyper import Hyper
from lsam_hpc.optim.perturbation import global_norm

if TYPE_CHECKING:
    from lsam_hpc.optim.sam import SAM


def applies(given: Sequence[Hyper], groups: Sequence[dict[str, Any]]) -> bool:
    """Return whether all radii are 0: neither functions of the step, nor changed since they were given."""
    return all(rho == 0 for rho in given) and all(group.get("rho") == 0 for group in groups)


def one_pass(sam: SAM, closure: Callable[[], Any], scaler: GradScaler | None) -> Any:  # noqa: ANN401
    """Leave the gradients at x, and return the loss there.

    Args:
        sam: the optimizer.
        closure: computes the loss and its gradient.
        scaler: of mixed precision.
    """
    loss = closure()
    check_dense(sam.parameters)
    sam.ascend(Gradients([], []))  # nowhere, for those who look at x + e
    sam.restore()
    with torch.no_grad():
        norm = global_norm(present(sam.parameters).grads)
        sam.perturbation.grad_norm = norm if scaler is None else norm / scaler.get_scale()  # 1 if it is disabled
        sam.perturbation.norm = torch.zeros_like(norm)
    return loss
