"""Ascent along the center's movement, so that a step takes one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from lsam_hpc.optim.ascents.base import Ascending, OnePass
from lsam_hpc.optim.gradients import Gradients
from lsam_hpc.optim.shards import local_parts


class CenterMovement(OnePass):
    """e = e(y_before - y), y and y_before being the center as a chain's last two exchanges read it.

    Until the center has moved, steps are the base optimizer's.

    Source: Fan et al. 2024, "Locally Estimated Global Perturbations are Better than Local Perturbations for Federated
    Sharpness-aware Minimization" (arXiv 2405.18890), FedLESAM: the server's model is here LSAM's center.
    """

    name = "center"
    remembers = True
    along_gradients = False  # the center has moved in the direction of the steps already

    def gradients(self, sam: Ascending, scaler: GradScaler | None) -> tuple[Gradients, bool]:
        """Return the center's last movement, reversed."""
        return Gradients(self.last.params, [g.clone() for g in self.last.grads]), True

    def moved(self, params: list[Tensor], movement: Sequence[Tensor]) -> None:
        """Take the difference of the centers that two exchanges read: the earlier one minus the later one.

        Args:
            params: the chain's parameters.
            movement: one tensor for each, or its part on this rank; copied.
        """
        if not self.last.params:
            self.last = Gradients(params, [torch.empty_like(p) for p in params])
        torch._foreach_copy_(local_parts(self.last.grads), list(movement))
