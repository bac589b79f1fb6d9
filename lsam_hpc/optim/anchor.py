"""The force of the kernel coupling."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lsam_hpc.optim.flat import FlatVector
from lsam_hpc.optim.shards import local_parts, with_parts


class Anchor:
    """The center y that the force lambda (x - y) draws a chain to, on the chain's device.

    Args:
        params: the chain's parameters; of DTensors this rank's parts are drawn.
        statistics: the tensors that follow the parameters in the center.
        center: the initial y, a vector, of which this rank holds as much as of the parameters.
    """

    def __init__(self, params: list[Tensor], statistics: list[Tensor], center: Tensor) -> None:
        self._params = params
        self._y = FlatVector([*local_parts(params), *statistics], dtype=center.dtype)
        self.load(center)

    def load(self, center: Tensor) -> None:
        """Replace y by a vector."""
        self._y.vector.copy_(center)

    def load_views(self, views: Sequence[Tensor]) -> None:
        """Replace y by one tensor for each parameter and statistic."""
        torch._foreach_copy_(self._y.views, list(views))

    def add_force(self, stiffness: float) -> None:
        """Add stiffness * (x - y) to the gradients."""
        anchors = self._y.views[: len(self._params)]
        pulled = [(p, p.grad, a) for p, a in zip(self._params, anchors, strict=True) if p.grad is not None]
        xs, grads, ys = ([triple[i] for triple in pulled] for i in range(3))
        # Not in place: the next ascent may use the old gradients.
        forced = torch._foreach_add(local_parts(grads), torch._foreach_sub(local_parts(xs), ys), alpha=stiffness)
        for x, grad in zip(xs, with_parts(forced, grads), strict=True):
            x.grad = grad.to(x.dtype)
