"""AsyncSAM: along the gradient at the last step's x, computed on fewer samples beside that step's descent."""

from __future__ import annotations

from typing import Any

from torch import distributed
from torch.amp.grad_scaler import GradScaler

from lsam_hpc.optim.ascents.base import Ascending, Closure, ClosureOnly, collect
from lsam_hpc.optim.ascents.pair import swap
from lsam_hpc.optim.gradients import Gradients, set_grads
from lsam_hpc.optim.minibatch import first_part


class AsyncSAM(ClosureOnly):
    """e = e(g), g = grad f(x'; b') at the last step's x' on part of its mini-batch; the first step has e = 0.

    The gradient at x for the next ascent and that at x + e do not need each other.

    Args:
        fraction: share of the mini-batch in b', > 0 and <= 1: its first samples.
        pair: two ranks with the same parameters and mini-batches, of which the first computes the gradient at x + e
            and the second that at x, at the same time. None: one rank computes both.

    Source: Jo et al. 2025, "Asynchronous Sharpness-Aware Minimization For Fast and Accurate Deep Learning"
    (arXiv 2503.11147), with its delay of one step.
    """

    name = "asyncsam"
    remembers = True

    def __init__(self, fraction: float, pair: distributed.ProcessGroup | None) -> None:
        super().__init__()
        self.fraction = fraction
        self.pair = pair

    def passes(self, sam: Ascending, closure: Closure, scaler: GradScaler | None) -> Any:  # noqa: ANN401
        """Run the pass at x on b' and the pass at x + e; return the loss at x + e (in a pair: this rank's)."""
        if self.fraction < 1:
            closure.require_batch(self.name)
        if sam.radii_are_0:
            return self.one_pass(sam, closure, scaler)
        if self.pair is None:
            following, finite = self._at_x(sam, closure, scaler)[1:]
            loss, descent, also_finite = self._at_ascent(sam, closure, scaler)
            finite = finite and also_finite
        elif distributed.get_rank(self.pair) == 0:
            loss, local, finite = self._at_ascent(sam, closure, scaler)
            descent, following, finite = swap(sam, local, self.pair, statistics_from=0, finite=finite)
        else:
            loss, local, finite = self._at_x(sam, closure, scaler)
            descent, following, finite = swap(sam, local, self.pair, statistics_from=0, finite=finite)
        set_grads(descent)
        # After an overflow the next step starts as the first one did.
        self.last, sam.overflow = following if finite else Gradients([], []), not finite
        return loss

    def _at_x(self, sam: Ascending, closure: Closure, scaler: GradScaler | None) -> tuple[Any, Gradients, bool]:
        """Return the loss, the gradient at x on b' and whether it is finite; BatchNorm statistics do not move."""
        with sam.frozen:
            loss = closure(None if self.fraction == 1 else first_part(closure.batch, self.fraction))
        if sam.average is not None and sam.average.ascent:
            sam.average(sam.parameters)
        return loss, *collect(sam, 0, scaler)

    def _at_ascent(self, sam: Ascending, closure: Closure, scaler: GradScaler | None) -> tuple[Any, Gradients, bool]:
        last, self.last = self.last, Gradients([], [])  # the ascent overwrites them: of no use if the pass fails
        sam.ascend(last)
        try:
            loss = closure()
        finally:
            sam.restore()
        return loss, *collect(sam, 1, scaler)
