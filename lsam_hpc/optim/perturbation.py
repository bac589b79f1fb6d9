"""Moves parameters to x + e(x), near the worst point within the ascent radius, and back to x exactly."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors

from lsam_hpc.optim.accelerators import KINDS
from lsam_hpc.optim.flat import widest_dtype
from lsam_hpc.optim.masks import Mask
from lsam_hpc.optim.shards import any_sharded, by_holders, fully_sharded, local_parts, placed_like, sum_over
from lsam_hpc.options.ascent import Metric

SMALL = 4096  # elements up to which a tensor is small
SLICE = 512  # small tensors concatenated at a time: at most 8 MB
HALF = (torch.bfloat16, torch.float16)  # x + e is rounded so far that |e| is not what the formula says


class Perturbation:
    """Computes e(x) and applies it; m is the mask, |.| is over all groups, and each group may have its own rho.

    * `l2`: e = rho * m g / (|g| + gamma). Foret et al. 2021, "Sharpness-Aware Minimization" (arXiv 2010.01412), eq. 2.
    * `adaptive`: e = rho * m T^2 g / (|T g| + gamma), T = |x| + eta elementwise. Kwon et al. 2021, "ASAM"
      (arXiv 2102.11600), eq. 5 and algorithm 1.

    x is restored from a copy of the parameters: subtracting e would round. Of DTensors each rank moves, copies and
    restores its part; |.| is over the parts of all ranks.

    Args:
        gamma: constant that keeps the division finite.
        metric: `"l2"` or `"adaptive"`.
        eta: constant of the adaptive metric.
        mask: selects the coordinates that move.
        model: module whose parameters move; needed if they are DTensors. Default None.
    """

    def __init__(self, gamma: float, metric: Metric, eta: float, mask: Mask, model: nn.Module | None = None) -> None:
        self.gamma, self.metric, self.eta, self.mask = gamma, metric, eta, mask
        self.grad_norm = torch.tensor(float("nan"))  # gradient norm before gamma is added: |g|, or |T g|
        self.norm = torch.tensor(float("nan"))  # |e|
        self.active = False  # True between `apply` or `leave` and `undo`
        self._params: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._large: list[int] = []
        self._small: list[int] = []
        self._gathering = fully_sharded(model)
        self._sharded = False  # True if some of the parameters are DTensors

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
        """Move the parameters to x + e; in torch.no_grad().

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
        if further:
            self.drop_gathered()
        else:
            self.leave(params)
        try:
            if self._sharded:
                grads = placed_like(grads, params)
            if not params:
                self.norm = self.grad_norm = torch.zeros(())
            else:
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
        self.drop_gathered()
        self.active = True

    def undo(self) -> None:
        """Restore the parameters to x."""
        if self._params:
            with torch.no_grad():  # `restore` may be called in a loop in phases
                torch._foreach_copy_(self._parts(self._params), self._parts(self._copies))
        self.drop_gathered()
        self.active = False

    def offset(self, params: list[Tensor]) -> list[Tensor]:
        """Return e = parameters - x, one tensor per parameter; 0 for parameters that were not moved."""
        saved = {id(p): copy for p, copy in zip(self._params, self._copies, strict=True)}
        return [p - saved[id(p)] if id(p) in saved else torch.zeros_like(p) for p in params]

    def _move(self, params: list[Tensor], direction: list[Tensor], rhos: float | list[float], *, again: bool) -> None:
        if not again:
            self.mask.prepare(params, direction)
        xs, ds = self._parts(params), self._parts(direction)
        scales: list[Tensor] = []
        if self.metric == "adaptive":
            scales = list(torch._foreach_abs(xs))
            torch._foreach_add_(scales, self.eta)
            torch._foreach_mul_(ds, scales)
        self.grad_norm = norm = self._norm(direction)
        if self.metric == "adaptive":
            torch._foreach_mul_(ds, scales)
            del scales
        self.mask.multiply_(params, direction)
        # With a zero gradient and gamma = 0 this makes e = 0 instead of NaN.
        unit = (norm + self.gamma).clamp_min(torch.finfo(norm.dtype).tiny).reciprocal()
        if isinstance(rhos, list):
            squares = torch.zeros_like(norm)
            for rho in dict.fromkeys(rhos):
                indices = [i for i, other in enumerate(rhos) if other == rho]
                squares += (rho * unit * global_norm([direction[i] for i in indices])) ** 2
                add_scaled_([xs[i] for i in indices], [ds[i] for i in indices], rho * unit)
            self.norm = squares.sqrt()
        else:
            length = norm if self.metric == "l2" and not self.mask.elementwise else self._norm(direction)
            self.norm = abs(rhos) * unit * length
            add_scaled_(xs, ds, rhos * unit)

    def drop_gathered(self) -> None:
        """Make the next pass gather the parameters anew: after a pass without backward some are still gathered."""
        for module in self._gathering:
            module.reshard()

    def _parts(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return what this rank holds of one tensor per parameter."""
        return local_parts(tensors) if self._sharded else tensors

    def _norm(self, tensors: list[Tensor]) -> Tensor:
        """Return the norm over one tensor per parameter; on the CPU small tensors are concatenated to save calls."""
        if self._sharded or len(tensors) != len(self._params):  # `further` with another list of parameters
            return global_norm(tensors)
        small = [tensors[i] for i in self._small]
        pieces = [_flatten_dense_tensors(small[i : i + SLICE]) for i in range(0, len(small), SLICE)]
        return _norm_of_parts([tensors[i] for i in self._large] + pieces)

    def _save(self, params: list[Tensor]) -> None:
        same = len(params) == len(self._params) and all(a is b for a, b in zip(params, self._params, strict=True))
        if not same or any(
            c.dtype != p.dtype or c.device != p.device for p, c in zip(params[:1], self._copies, strict=False)
        ):
            self._copies = [torch.empty_like(p) for p in params]
            self._params = params
            self._sharded = any_sharded(params)
            few = (
                len(params) < SLICE // 8
                or len({(p.dtype, p.device.type) for p in params}) > 1
                or params[0].device.type in KINDS
            )
            self._large = [i for i, p in enumerate(params) if few or p.numel() > SMALL]
            self._small = [i for i, p in enumerate(params) if not few and p.numel() <= SMALL]
        if params:
            torch._foreach_copy_(self._parts(self._copies), self._parts(params))


def add_scaled_(xs: list[Tensor], ds: list[Tensor], scale: Tensor) -> None:
    """Add scale * d to each x, in place; on a GPU this overwrites the ds, to avoid waiting for the scale's value."""
    if scale.device.type == "cpu":
        if value := scale.item():
            torch._foreach_add_(xs, ds, alpha=value)
    else:
        torch._foreach_mul_(ds, scale)
        torch._foreach_add_(xs, ds)


def global_norm(tensors: list[Tensor]) -> Tensor:
    """Return the Euclidean norm over all the tensors, a scalar tensor on the first one's device.

    With DTensors it is collective: a part that several ranks hold counts once.
    """
    if not any_sharded(tensors):
        return _norm_of_parts(tensors)
    dtype, squares = widest_dtype(tensors), []
    for parts, dimensions in by_holders(tensors):
        squares.append(sum_over(_norm_of_parts(parts).double() ** 2, dimensions))
    device = squares[0].device
    return torch.stack([square.to(device) for square in squares]).sum().sqrt().to(dtype)


def global_dot(xs: list[Tensor], ys: list[Tensor]) -> Tensor:
    """Return the inner product of two vectors given as lists of tensors, a scalar tensor; with DTensors collective."""
    products = [
        sum_over(torch.stack([(x * y).sum() for x, y in zip(these, others, strict=True)]).sum(), dimensions)
        for (these, dimensions), (others, _) in zip(by_holders(xs), by_holders(ys), strict=True)
    ]
    return torch.stack([product.to(xs[0].device) for product in products]).sum()


def _norm_of_parts(tensors: list[Tensor]) -> Tensor:
    dtype, device = widest_dtype(tensors), tensors[0].device
    norms = torch._foreach_norm(tensors, 2, dtype)
    if any(t.device != device for t in tensors):
        norms = tuple(n.to(device) for n in norms)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    return norm
