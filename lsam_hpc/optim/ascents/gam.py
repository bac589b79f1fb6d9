"""GAM: descends along the loss and along its gradient norm's maximum in a ball, at four passes per step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from lsam_hpc.optim.ascents.base import Ascending, Closure, ClosureOnly, collect
from lsam_hpc.optim.gradients import Gradients, set_grads
from lsam_hpc.optim.perturbation import global_dot, global_norm
from lsam_hpc.optim.shards import clones, local_parts


@dataclass(frozen=True)
class Weights:
    """The weights of GAM's four gradients."""

    at_ascent: float  # beta_1, of grad f(x + e0); that of the last pass is 1 - beta_1
    norm: float  # beta_2, of the gradient at the norm's ascent, in the vector that is decomposed
    perpendicular: float  # gamma, of what is perpendicular to the descent


class GAM(ClosureOnly):
    """Gradient norm aware minimization: first-order flatness.

    The passes are at x (gradient g0), at x + e(g0) (g1), at x1 = x + e'(g1 - g0) (g2) and at x1 + e(g2) (g3), where e
    is SAM's with radius rho and e' with radius rho'. With d = beta_1 g1 + (1 - beta_1) g3 and q = g0 + beta_2 g2
    the step descends along d - gamma (q - (q, d) d / |d|^2).

    Args:
        norm_rho: rho', the radius of the gradient norm's ascent.
        weights: beta_1, beta_2 and gamma.

    Source: Zhang et al. 2023, "Gradient Norm Aware Minimization Seeks First-Order Flatness and Improves Generalization"
    (arXiv 2303.03108), in the form of the authors' code.
    """

    name = "gam"

    def __init__(self, norm_rho: float, weights: Weights) -> None:
        super().__init__()
        self.norm_rho, self.weights = norm_rho, weights

    def passes(self, sam: Ascending, closure: Closure, scaler: GradScaler | None) -> Any:  # noqa: ANN401
        """Run the four passes; return the loss at x. One pass where all radii are 0."""
        if sam.radii_are_0:
            return self.one_pass(sam, closure, scaler)
        loss = closure()
        found = [_take(sam, 0, scaler)]
        with sam.frozen:
            try:
                if found[0][1]:
                    self._three(sam, closure, scaler, found)
            finally:
                if sam.perturbation.active:
                    sam.restore()
        sam.overflow = not all(finite for _, finite in found)
        set_grads(found[0][0] if sam.overflow else self._descent(sam, [gradients for gradients, _ in found]))
        return loss

    def _three(
        self, sam: Ascending, closure: Closure, scaler: GradScaler | None, found: list[tuple[Gradients, bool]]
    ) -> None:
        """Append the gradients of the passes at x + e0, x1 and x1 + e(g2), as far as they are finite."""
        g0 = found[0][0]
        sam.ascend(g0, keep=True)
        closure()
        found.append(_take(sam, 1, scaler))
        sam.restore()
        if not found[1][1]:
            return
        params, g0s, g1s = _common(g0, found[1][0])
        differences = clones(g1s)
        torch._foreach_sub_(local_parts(differences), local_parts(g0s))
        sam.ascend(Gradients(params, differences), radius=self.norm_rho)
        sam.frozen.on()  # `restore` has ended it
        closure()
        found.append(_take(sam, 2, scaler))
        if not found[2][1]:
            return
        sam.ascend(found[2][0], keep=True, further=True)
        closure()
        found.append(_take(sam, 3, scaler))

    @torch.no_grad()
    def _descent(self, sam: Ascending, found: list[Gradients]) -> Gradients:
        params, *all_parts = _common(*found)
        g0, g1, g2, g3 = map(local_parts, all_parts)
        torch._foreach_mul_(g1, self.weights.at_ascent)
        torch._foreach_add_(g1, g3, alpha=1 - self.weights.at_ascent)
        torch._foreach_add_(g0, g2, alpha=self.weights.norm)
        gamma = sam.perturbation.gamma
        q, d = all_parts[:2]  # whose parts are g0 and g1
        d_norm, q_norm = global_norm(d), global_norm(q)
        cosine = global_dot(d, q) / (d_norm * q_norm + gamma)
        along = cosine * q_norm / (d_norm + gamma)
        torch._foreach_sub_(g0, torch._foreach_mul(g1, along))
        torch._foreach_sub_(g1, g0, alpha=self.weights.perpendicular)
        return Gradients(params, d)


def _take(sam: Ascending, number: int, scaler: GradScaler | None) -> tuple[Gradients, bool]:
    if sam.average is not None and sam.average.ascent:
        sam.average(sam.parameters)
    return collect(sam, number, scaler)


def _common(*several: Gradients) -> tuple[list[Tensor], ...]:
    """Return the parameters that have all gradients, and these gradients, one list for each argument."""
    maps = [{id(p): g for p, g in zip(*gradients, strict=True)} for gradients in several]
    params = [p for p in several[0].params if all(id(p) in known for known in maps)]
    return params, *([known[id(p)] for p in params] for known in maps)
