"""SAMPa: a step whose two gradients can be computed at the same time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed
from torch.amp.grad_scaler import GradScaler

from lsam_hpc.optim.ascents.base import Ascending, Closure, ClosureOnly, collect, one_pass
from lsam_hpc.optim.ascents.pair import swap
from lsam_hpc.optim.gradients import Gradients, set_grads
from lsam_hpc.optim.shards import local_parts, placed_like


class SAMPa(ClosureOnly):
    """x~ = x + e(g) and y' = x - step(g), g = grad f(y; B) from the last step, whose mini-batch was B.

    The step descends along (1 - interpolation) grad f(x~; B) + interpolation grad f(y'; B'), B' being this step's
    mini-batch, and g becomes grad f(y'; B'). step(g) is the step that SGD would take along g, with its momentum and
    weight decay; for other base optimizers lr * g. The first step and steps with rho = 0 are the base optimizer's,
    and set g.

    Args:
        interpolation: weight of grad f(y'), 0 to 1.
        pair: two ranks with the same parameters and mini-batches, of which the first computes the gradient at x~ and
            the second that at y', at the same time. None: one rank computes both.

    Source: Xie et al. 2024, "SAMPa: Sharpness-aware Minimization Parallelized" (arXiv 2410.10683), algorithm 1, and the
    authors' code. Where they differ this follows the code: it starts with a step of the base optimizer (the paper only
    sets g = grad f(x; B)), and y' is ahead by the optimizer's step (the paper: by lr * g). One difference from the
    code: without momentum it leaves the weight decay out of y'.
    """

    name = "sampa"
    remembers = True

    def __init__(self, interpolation: float, pair: distributed.ProcessGroup | None) -> None:
        super().__init__()
        self.interpolation = interpolation
        self.pair = pair

    def passes(self, sam: Ascending, closure: Closure, scaler: GradScaler | None) -> Any:  # noqa: ANN401
        """Run the passes at x~ and y', in the first step at x; return the loss at y' (in a pair: this rank's)."""
        closure.require_batch(self.name)
        if self.last.params and not sam.radii_are_0:
            loss, ahead, finite = self._both(sam, closure, scaler)
        else:
            loss = one_pass(sam, closure, scaler)
            ahead, finite = collect(sam, 0, scaler)
            set_grads(Gradients(ahead.params, [g.clone() for g in ahead.grads]))  # the base may write into them
        # After an overflow the next step starts as the first one did.
        self.last, self.last_batch = (ahead, closure.batch) if finite else (Gradients([], []), None)
        sam.overflow = not finite
        return loss

    def _both(self, sam: Ascending, closure: Closure, scaler: GradScaler | None) -> tuple[Any, Gradients, bool]:
        """Set the gradient to descend along; return the loss, the gradient at y', and whether all are finite."""
        g, loss = self.last, None
        if self.pair is None:
            with _at_ascent(sam, g):
                closure(self.last_batch)
                at_ascent, finite = collect(sam, 1, scaler)
            with _ahead(sam, g):
                loss = closure()
                at_ahead, also_finite = collect(sam, 2, scaler)
            finite = finite and also_finite
        else:
            first = distributed.get_rank(self.pair) == 0
            with _at_ascent(sam, g) if first else _ahead(sam, g):
                loss = closure(self.last_batch) if first else closure()
                local, finite = collect(sam, 1, scaler)
            at_ascent, at_ahead, finite = swap(sam, local, self.pair, statistics_from=1, finite=finite)
        known = {id(p): h for p, h in zip(*at_ahead, strict=True)}
        shared = [(p, h, known[id(p)]) for p, h in zip(*at_ascent, strict=True) if id(p) in known]
        at_ascents, at_aheads = local_parts([h for _, h, _ in shared]), local_parts([k for _, _, k in shared])
        torch._foreach_lerp_(at_ascents, at_aheads, self.interpolation)
        set_grads(Gradients([p for p, _, _ in shared], [h for _, h, _ in shared]))
        return loss, at_ahead, finite


@contextmanager
def _at_ascent(sam: Ascending, g: Gradients) -> Iterator[None]:
    """Move to x~, with frozen BatchNorm statistics; at the end restore x."""
    try:
        sam.ascend(g, keep=True)
        sam.frozen.on()
        yield
    finally:
        if sam.perturbation.active:
            sam.restore()


@contextmanager
def _ahead(sam: Ascending, g: Gradients) -> Iterator[None]:
    """Move to y'; at the end restore x."""
    try:
        _look_ahead(sam, g)
        yield
    finally:
        if sam.perturbation.active:
            sam.restore()


@torch.no_grad()
def _look_ahead(sam: Ascending, g: Gradients) -> None:
    """Move by the step that the base optimizer, if it is SGD, would take along g; without changing its state."""
    sam.perturbation.leave(g.params)
    is_sgd = type(sam.base) is torch.optim.SGD
    grads = {id(p): h for p, h in zip(*g, strict=True)}
    for group in sam.param_groups:
        params = [p for p in group["params"] if id(p) in grads]
        if not params:
            continue
        along = [-grads[id(p)] if group.get("maximize") else grads[id(p)] for p in params]
        xs, updates = local_parts(params), local_parts(placed_like(along, params))
        if is_sgd:
            buffers = [sam.base.state.get(p, {}).get("momentum_buffer") for p in params]
            updates = _sgd_updates(xs, updates, group, buffers)
        torch._foreach_sub_(xs, updates, alpha=float(group["lr"]))


def _sgd_updates(
    xs: list[Tensor], updates: list[Tensor], group: dict[str, Any], buffers: list[Tensor | None]
) -> list[Tensor]:
    """Return the vectors that torch's SGD would subtract for gradients, divided by the learning rate.

    Args:
        xs: the parameters.
        updates: the gradient of each.
        group: their group.
        buffers: the momentum buffer of each; None before its first step.
    """
    if group["weight_decay"]:
        updates = list(torch._foreach_add(updates, xs, alpha=group["weight_decay"]))
    if not group["momentum"]:
        return updates
    known = local_parts([b for b in buffers if b is not None])
    if len(known) == len(updates):
        moved = list(torch._foreach_mul(known, group["momentum"]))
        torch._foreach_add_(moved, updates, alpha=1 - group["dampening"])
    else:  # before a parameter's first step, its momentum will be the update itself
        moved, rest = [], iter(known)
        for update, buffer in zip(updates, buffers, strict=True):
            fresh = (1 - group["dampening"]) * update
            moved.append(update if buffer is None else next(rest) * group["momentum"] + fresh)
    return list(torch._foreach_add(updates, moved, alpha=group["momentum"])) if group["nesterov"] else moved
