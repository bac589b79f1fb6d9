"""The ascent e(x) that takes a sample to the worst point near it, and the exact way back."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from lsam_hpc.optim.flat import widest_dtype
from lsam_hpc.optim.hyper import Metric
from lsam_hpc.optim.masks import Mask

SMALL = 4096  # elements
SLICE = 512  # small tensors that are joined at a time: 8 MB at most


class Perturbation:
    """x + e(x), where m is a mask, and the norm is over all groups together while each has its own rho.

    * `l2`: e = rho * m g / (|g| + gamma). Foret et al. 2021, "Sharpness-Aware Minimization" (arXiv 2010.01412), eq. 2.
    * `adaptive`: e = rho * m T^2 g / (|T g| + gamma), T = |x| + eta elementwise. Kwon et al. 2021, "ASAM"
      (arXiv 2102.11600), eq. 5 and algorithm 1.

    One copy of the parameters is kept, so that the way back does not round.

    Args:
        gamma: constant that keeps the division finite.
        metric: `"l2"` or `"adaptive"`.
        eta: of the adaptive metric.
        mask: which coordinates move.
    """

    def __init__(self, gamma: float, metric: Metric, eta: float, mask: Mask) -> None:
        self.gamma, self.metric, self.eta, self.mask = gamma, metric, eta, mask
        self.grad_norm = torch.tensor(float("nan"))  # what the division was by, less gamma
        self.norm = torch.tensor(float("nan"))  # |e|
        self.active = False
        self._params: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._large: list[int] = []
        self._small: list[int] = []

    @torch.no_grad()
    def apply(self, params: list[Tensor], grads: list[Tensor], rhos: float | list[float], keep: bool) -> None:
        """Move the parameters to x + e.

        Args:
            params: the parameters.
            grads: the gradient of each; overwritten unless `keep`.
            rhos: the ascent radius, of all or of each.
            keep: whether the gradients are needed afterwards.
        """
        if self.mask.partial:
            chosen = [i for i, p in enumerate(params) if self.mask.selects(p)]
            params, grads = [params[i] for i in chosen], [grads[i] for i in chosen]
            rhos = [rhos[i] for i in chosen] if isinstance(rhos, list) else rhos
        self.leave(params)
        if not params:
            return
        try:
            self._move(params, [g.clone() for g in grads] if keep else grads, rhos)
        except BaseException:
            self.undo()
            raise

    def leave(self, params: list[Tensor]) -> None:
        """Keep x, the parameters as they are now; `undo` brings them back to it, wherever they have been moved."""
        self._save(params)
        self.active = True

    @torch.no_grad()
    def undo(self) -> None:
        """Bring the parameters back to x."""
        if self._params:
            torch._foreach_copy_(self._params, self._copies)
        self.active = False

    def offset(self, params: list[Tensor]) -> list[Tensor]:
        """Return e, a tensor for each of the parameters, which are at x + e."""
        saved = {id(p): copy for p, copy in zip(self._params, self._copies, strict=True)}
        return [p - saved[id(p)] if id(p) in saved else torch.zeros_like(p) for p in params]

    def _move(self, params: list[Tensor], direction: list[Tensor], rhos: float | list[float]) -> None:
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
        # A zero gradient with gamma = 0 has no direction: it stays zero.
        unit = (norm + self.gamma).clamp_min(torch.finfo(norm.dtype).tiny).reciprocal()
        if isinstance(rhos, list):
            squares = torch.zeros_like(norm)
            for rho in dict.fromkeys(rhos):
                mine = [i for i, other in enumerate(rhos) if other == rho]
                ds = [direction[i] for i in mine]
                squares += (rho * unit * global_norm(ds)) ** 2
                add_scaled_([params[i] for i in mine], ds, rho * unit)
            self.norm = squares.sqrt()
        else:
            length = norm if self.metric == "l2" and not self.mask.elementwise else self._norm(direction)
            self.norm = rhos * unit * length
            add_scaled_(params, direction, rhos * unit)

    def _norm(self, tensors: list[Tensor]) -> Tensor:
        """Return the norm over one tensor per parameter; on a CPU without a call for each of many small ones."""
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
    """Add scale * d to each x; on a GPU without waiting for the scale's value, at the cost of the ds."""
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
