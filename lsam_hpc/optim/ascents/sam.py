"""SAM: along the gradient at x, so that a step takes two passes; one where all radii are 0."""

from __future__ import annotations

from typing import Any

from torch.amp.grad_scaler import GradScaler

from lsam_hpc.optim.amp import unscale, unscaled
from lsam_hpc.optim.ascents.base import Ascending, Ascent, Closure, one_pass
from lsam_hpc.optim.gradients import Gradients, take


class SharpnessAware(Ascent):
    """e = e(g), g = grad f(x).

    Source: Foret et al. 2021 (arXiv 2010.01412), algorithm 1.
    """

    name = "sam"
    freezes = True
    begins_with_ascent = True

    def passes(self, sam: Ascending, closure: Closure, scaler: GradScaler | None) -> Any:  # noqa: ANN401
        """Run the passes at x and at x + e."""
        if sam.radii_are_0:
            return one_pass(sam, closure, scaler)
        loss = closure()
        sam.climb(scaler)
        try:
            closure()
        finally:
            sam.restore()
        return loss

    def gradients(self, sam: Ascending, scaler: GradScaler | None) -> tuple[Gradients, bool]:
        """Take the gradients at x from the parameters."""
        if unscaled(scaler, sam.base):
            raise RuntimeError("perturb: the scaler has unscaled opt.base already: call unscale_ after restore() only")
        if sam.average is not None and sam.average.ascent:
            sam.average(sam.parameters)
        finite = unscale(scaler, sam)
        return take(sam.parameters), finite

    def unscaled_by(self, sam: Ascending) -> tuple[object, ...]:
        """Return the base optimizer; the key SAM itself is used for the pass at x."""
        return (sam.base,)
