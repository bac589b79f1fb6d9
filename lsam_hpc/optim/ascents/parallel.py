"""The parallel ascent: SAMPa's step, whose two gradients can be computed at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import distributed
from torch.amp.grad_scaler import GradScaler

from lsam_hpc.optim.amp import forget, unscale
from lsam_hpc.optim.ascents.base import Ascending, Ascent
from lsam_hpc.optim.flat import FlatVector
from lsam_hpc.optim.gradients import Gradients, check_dense, take


class Parallel(Ascent):
    """x~ = x + e(g) and y' = x - lr g, g = grad f(y) from the last step (grad f(x) in the first).

    The step descends along (1 - interpolation) grad f(x~) + interpolation grad f(y').

    Args:
        interpolation: weight of grad f(y'), 0 to 1.
        pair: two ranks with the same parameters and mini-batches, of which the first computes the gradient at x~ and
            the second that at y', at the same time. None: one rank computes both.

    Source: Xie et al. 2024, "SAMPa: Sharpness-aware Minimization Parallelized" (arXiv 2410.10683), eq. 6.
    """

    name = "parallel"
    in_phases = False

    def __init__(self, interpolation: float, pair: distributed.ProcessGroup | None) -> None:
        super().__init__()
        self.interpolation = interpolation
        self.pair = pair

    def passes(self, sam: Ascending, closure: Callable[[], Any], scaler: GradScaler | None) -> Any:  # noqa: ANN401
        """Run the passes at x~ and y', in the first step also at x; return the loss at y' (in a pair: this rank's)."""
        sam.begin_step(scaler)
        loss, last, finite = self._both(sam, closure, scaler)
        # After an overflow the next step starts as the first one did.
        self.last, sam.overflow = (last, False) if finite else (Gradients([], []), True)
        return loss

    def gradients(self, sam: Ascending, scaler: GradScaler | None) -> tuple[Gradients, bool]:
        """Raise RuntimeError: in phases, the points of the passes are not known before."""
        raise RuntimeError("perturb: the parallel ascent works by step(closure) only")

    def unscaled_by(self, sam: Ascending) -> tuple[object, ...]:
        """Return no key: `passes` unscales each pass."""
        return ()

    def _both(
        self, sam: Ascending, closure: Callable[[], Any], scaler: GradScaler | None
    ) -> tuple[Any, Gradients, bool]:
        """Set the gradient to descend along; return the loss, the gradient at y', and whether all are finite."""
        finite = [True]
        before, loss = self.last, None
        if not before.params:
            with sam.frozen:  # BatchNorm statistics change at y' only, as in every step
                loss = closure()
                before = _collect(sam, 0, scaler, finite)
        if not all(finite):  # no ascent along this gradient is possible
            return loss, _set_grads(before), False
        if self.pair is None:
            with _moved(sam, before):
                closure()
                at_ascent = _collect(sam, 1, scaler, finite)
            with _moved(sam, before, ahead=True):
                loss = closure()
                at_ahead = _collect(sam, 2, scaler, finite)
        else:
            with _moved(sam, before, ahead=distributed.get_rank(self.pair) == 1):
                loss = closure()
                local = _collect(sam, 1, scaler, finite)
            at_ascent, at_ahead = _swap(sam, local, finite, self.pair)
        known = {id(p): g for p, g in zip(*at_ahead, strict=True)}
        shared = [(p, g, known[id(p)]) for p, g in zip(*at_ascent, strict=True) if id(p) in known]
        torch._foreach_lerp_([g for _, g, _ in shared], [h for _, _, h in shared], self.interpolation)
        _set_grads(Gradients([p for p, _, _ in shared], [g for _, g, _ in shared]))
        return loss, at_ahead, all(finite)


@contextmanager
def _moved(sam: Ascending, along: Gradients, *, ahead: bool = False) -> Iterator[None]:
    """Move to x + e(g), with frozen BatchNorm statistics, or ahead to x - lr g; at the end restore x."""
    try:
        if ahead:
            _look_ahead(sam, along)
        else:
            sam.ascend(along, keep=True)
            sam.frozen.on()
        yield
    finally:
        if sam.perturbation.active:
            sam.restore()


@torch.no_grad()
def _look_ahead(sam: Ascending, along: Gradients) -> None:
    sam.perturbation.leave(along.params)
    grads = {id(p): g for p, g in zip(*along, strict=True)}
    for group in sam.param_groups:
        params = [p for p in group["params"] if id(p) in grads]
        if params:
            torch._foreach_add_(params, [grads[id(p)] for p in params], alpha=-float(group["lr"]))


def _collect(sam: Ascending, number: int, scaler: GradScaler | None, finite: list[bool]) -> Gradients:
    """Take the gradients of a pass from the parameters and note whether they are finite."""
    check_dense(sam.parameters)
    forget(scaler, sam.passes[number])
    finite.append(unscale(scaler, sam.passes[number]))
    taken = take(sam.parameters)
    # Copy views: the next pass may overwrite their buffer, such as a bucket of DistributedDataParallel.
    return Gradients(taken.params, [g.clone() if g._base is not None else g for g in taken.grads])


def _set_grads(gradients: Gradients) -> Gradients:
    for p, g in zip(*gradients, strict=True):
        p.grad = g
    return gradients


def _swap(
    sam: Ascending, local: Gradients, finite: list[bool], pair: distributed.ProcessGroup
) -> tuple[Gradients, Gradients]:
    """Return the gradients at x~ and y' from the two ranks of a pair; append to `finite` whether each is finite.

    Both ranks get the second rank's BatchNorm statistics, which changed at y'.
    """
    both = []
    for source in range(2):
        flat = FlatVector(sam.parameters)  # all parameters: the ranks' passes may have reached different ones
        known = {id(p): g for p, g in zip(*local, strict=True)}
        if distributed.get_rank(pair) == source:
            flat.gather([known.get(id(p), torch.zeros_like(p)) for p in sam.parameters])
        flag = torch.tensor([float(all(finite))], device=flat.vector.device)
        for tensor in (flat.vector, flag):
            distributed.broadcast(tensor, distributed.get_global_rank(pair, source), group=pair)
        finite.append(bool(flag.item()))
        both.append(Gradients(sam.parameters, [v.to(p.dtype) for v, p in zip(flat.views, sam.parameters, strict=True)]))
    for statistic in sam.frozen.statistics:
        distributed.broadcast(statistic, distributed.get_global_rank(pair, 1), group=pair)
    return both[0], both[1]
