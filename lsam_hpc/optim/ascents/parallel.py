"""The parallel ascent: SAMPa's step, whose two gradients do not need each other."""

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

    The step goes down (1 - interpolation) grad f(x~) + interpolation grad f(y').

    Args:
        interpolation: 0 to 1.
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
        """Make the passes at x~ and y', in the first step one at x too; return the loss at y' (of a pair: its own)."""
        sam.begin_step(scaler)
        loss, last, finite = self._both(sam, closure, scaler)
        # After an overflow the next step starts afresh, as the first one did.
        self.last, sam.overflow = (last, False) if finite else (Gradients([], []), True)
        return loss

    def gradients(self, sam: Ascending, scaler: GradScaler | None) -> tuple[Gradients, bool]:
        """Refuse phases: what the passes are at is not known before."""
        raise RuntimeError("perturb: the parallel ascent works by step(closure) only")

    def unscaled_by(self, sam: Ascending) -> tuple[object, ...]:
        """Return nothing: each pass is unscaled by itself."""
        return ()

    def _both(
        self, sam: Ascending, closure: Callable[[], Any], scaler: GradScaler | None
    ) -> tuple[Any, Gradients, bool]:
        """Leave the gradient to descend along; return the loss, the gradient at y', and whether all are finite."""
        finite = [True]
        before, loss = self.last, None
        if not before.params:
            with sam.frozen:  # the statistics move at y', as in every step
                loss = closure()
                before = _collect(sam, 0, scaler, finite)
        if not all(finite):  # there is nowhere to go along such a gradient
            return loss, _give_back(before), False
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
                mine = _collect(sam, 1, scaler, finite)
            at_ascent, at_ahead = _swap(sam, mine, finite, self.pair)
        known = {id(p): g for p, g in zip(*at_ahead, strict=True)}
        shared = [(p, g, known[id(p)]) for p, g in zip(*at_ascent, strict=True) if id(p) in known]
        torch._foreach_lerp_([g for _, g, _ in shared], [h for _, _, h in shared], self.interpolation)
        _give_back(Gradients([p for p, _, _ in shared], [g for _, g, _ in shared]))
        return loss, at_ahead, all(finite)


@contextmanager
def _moved(sam: Ascending, along: Gradients, *, ahead: bool = False) -> Iterator[None]:
    """Be at x + e(g), with BatchNorm's statistics frozen, or ahead at x - lr g; at the end be at x again."""
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
        mine = [p for p in group["params"] if id(p) in grads]
        if mine:
            torch._foreach_add_(mine, [grads[id(p)] for p in mine], alpha=-float(group["lr"]))


def _collect(sam: Ascending, number: int, scaler: GradScaler | None, finite: list[bool]) -> Gradients:
    """Take the gradients of a pass from the parameters and note whether they are finite."""
    check_dense(sam.parameters)
    forget(scaler, sam.passes[number])
    finite.append(unscale(scaler, sam.passes[number]))
    taken = take(sam.parameters)
    # A view may be of a buffer that the next pass fills anew, as DistributedDataParallel's buckets are.
    return Gradients(taken.params, [g.clone() if g._base is not None else g for g in taken.grads])


def _give_back(gradients: Gradients) -> Gradients:
    for p, g in zip(*gradients, strict=True):
        p.grad = g
    return gradients


def _swap(
    sam: Ascending, mine: Gradients, finite: list[bool], pair: distributed.ProcessGroup
) -> tuple[Gradients, Gradients]:
    """Return the gradients of both ranks of a pair, that at x~ first; note whether the other's are finite.

    The running statistics become the second rank's, which moved at y'.
    """
    both = []
    for source in range(2):
        flat = FlatVector(sam.parameters)  # all of them: the ranks' passes may have reached different ones
        known = {id(p): g for p, g in zip(*mine, strict=True)}
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
