"""Moves parameters to x + e(x), near the worst point within the ascent radius, and back to x exactly."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from lsam_hpc.optim.flat import widest_dtype
from lsam_hpc.optim.masks import Mask
from lsam_hpc.options.ascent import Metric

SMALL = 4096  # elements up to which a tensor is small
SLICE = 512  # small tensors concatenated at a time: at most 8 MB
HALF = (torch.bfloat16, torch.float16)  # x + e is rounded so far that |e| is not what the formula says


class Perturbation:
    """Computes e(x) and applies it; m is the mask, |.| is over all groups, and each group may have its own rho.

    * `l2`: e = rho * m g / (|g| + gamma). Foret et al. 2021, "Sharpness-Aware Minimization" (arXiv 2010.01412), eq. 2.
    * `adaptive`: e = rho * m T^2 g / (|T g| + gamma), T = |x| + eta elementwise. Kwon et al. 2021, "ASAM"
      (arXiv 2102.11600), eq. 5 and algorithm 1.

    x is restored from a copy of the parameters: subtracting e would round.

    Args:
        gamma: constant that keeps the division finite.
        metric: `"l2"` or `"adaptive"`.
        eta: constant of the adaptive metric.
        mask: selects the coordinates that move.
    """

    def __init__(self, gamma: float, metric: Metric, eta: float, mask: Mask) -> None:
        self.gamma, self.metric, self.eta, self.mask = gamma, metric, eta, mask
        self.grad_norm = torch.tensor(float("nan"))  # gradient norm before gamma is added: |g|, or |T g|
        self.norm = torch.tensor(float("nan"))  # |e|
        self.active = False  # True between `apply` or `leave` and `undo`
        self._params: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._large: list[int] = []
        self._small: list[int] = []

    @torch.no_grad()
    def apply(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        rhos: float | list[float],
        *,
        keep: bool = False,
        again: bool = False,
        further: bool = False,
    ) -> None:
        """Move the parameters to x + e.

        Args:
            params: the parameters.
            grads: the gradient of each parameter; overwritten unless `keep`.
            rhos: the ascent radius, one for all parameters or one for each; negative: against the gradients.
            keep: True if the caller needs the gradients afterwards. Default False.
            again: another ascent of the same step: the mask stays. Default False.
            further: the same, and the parameters move on from where they are. Default False.
        """
        if self.mask.partial:
            chosen = [i for i, p in enumerate(params) if self.mask.selects(p)]
            params, grads = [params[i] for i in chosen], [grads[i] for i in chosen]
            rhos = [rhos[i] for i in chosen] if isinstance(rhos, list) else rhos
        if not further:
            self.leave(params)
        try:
            if params:
                self._move(params, [g.clone() for g in grads] if keep else grads, rhos, again=again or further)
            if not (again or further):
                self.mask.moved(params)
        except BaseException:
            self.undo()
            raise
        if params and (further or params[0].dtype in HALF):
            self.norm = global_norm([p - x for p, x in zip(self._params, self._copies, strict=True)])

    def leave(self, params: list[Tensor]) -> None:
        """Save the current parameters as x; `undo` restores them, however they are moved in between."""
        self._save(params)
        self.active = True

    @torch.no_grad()
    def undo(self) -> None:
        """Restore the parameters to x."""
        if self._params:
            torch._foreach_copy_(self._params, self._copies)
        self.active = False

    def offset(self, params: list[Tensor]) -> list[Tensor]:
        """Return e = parameters - x, one tensor per parameter; 0 for parameters that were not moved."""
        saved = {id(p): copy for p, copy in zip(self._params, self._copies, strict=True)}
        return [p - saved[id(p)] if id(p) in saved else torch.zeros_like(p) for p in params]

    def _move(self, params: list[Tensor], direction: list[Tensor], rhos: float | list[float], *, again: bool) -> None:
        if not again:
            self.mask.prepare(params, direction)
        scales: list[Tensor] = []
        if self.metric == "adaptive":
            scales = list(torch._foreach_abs(params))
            torch._foreach_add_(scales, self.eta)
            torch._foreach_mul_(direction, scales)
        self.grad_norm = norm = self._norm(direction)
        if self.metric == "adaptive":
            torch._foreach_mul_(direction, scales)
            del scales
        self.mask.multiply_(params, direction)
        # With a zero gradient and gamma = 0 this makes e = 0 instead of NaN.
        unit = (norm + self.gamma).clamp_min(torch.finfo(norm.dtype).tiny).reciprocal()
        if isinstance(rhos, list):
            squares = torch.zeros_like(norm)
            for rho in dict.fromkeys(rhos):
                indices = [i for i, other in enumerate(rhos) if other == rho]
                ds = [direction[i] for i in indices]
                squares += (rho * unit * global_norm(ds)) ** 2
                add_scaled_([params[i] for i in indices], ds, rho * unit)
            self.norm = squares.sqrt()
        else:
            length = norm if self.metric == "l2" and not self.mask.elementwise else self._norm(direction)
            self.norm = abs(rhos) * unit * length
            add_scaled_(params, direction, rhos * unit)

    def _norm(self, tensors: list[Tensor]) -> Tensor:
        """Return the norm over one tensor per parameter; on the CPU small tensors are concatenated to save calls."""
        small = [tensors[i] for i in self._small]
        pieces = [_flatten_dense_tensors(small[i : i + SLICE]) for i in range(0, len(small), SLICE)]
        return global_norm([tensors[i] for i in self._large] + pieces)

    @torch.no_grad()
    def _save(self, params: list[Tensor]) -> None:
        same = len(params) == len(self._params) and all(a is b for a, b in zip(params, self._params, strict=True))
        if not same or any(
            c.dtype != p.dtype or c.device != p.device for p, c in zip(params[:1], self._copies, strict=False)
        ):
            self._copies = [torch.empty_like(p) for p in params]
            self._params = params
            few = len(params) < SLICE // 8 or len({(p.dtype, p.device.type) for p in params}) > 1 or params[0].is_cuda
            self._large = [i for i, p in enumerate(params) if few or p.numel() > SMALL]
            self._small = [i for i, p in enumerate(params) if not few and p.numel() <= SMALL]
        if params:
            torch._foreach_copy_(self._copies, params)


def add_scaled_(xs: list[Tensor], ds: list[Tensor], scale: Tensor) -> None:
    """Add scale * d to each x, in place; on a GPU this overwrites the ds, to avoid waiting for the scale's value."""
    if scale.device.type == "cpu":
        if value := scale.item():
            torch._foreach_add_(xs, ds, alpha=value)
    else:
        torch._foreach_mul_(ds, scale)
        torch._foreach_add_(xs, ds)


def global_norm(tensors: list[Tensor]) -> Tensor:
    """Return the Euclidean norm over all the tensors, a scalar tensor on the first one's device."""
    dtype, device = widest_dtype(tensors), tensors[0].device
    norms = torch._foreach_norm(tensors, 2, dtype)
    if any(t.device != device for t in tensors):
        norms = tuple(n.to(device) for n in norms)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm
