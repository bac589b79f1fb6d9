"""Training with a mask, compared step by step with a formula on flat vectors in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lsam_hpc import SAM
from lsam_hpc.optim.masks import Mask
from tests.helpers.problems import batches, closure_of, flat, gradient, network

LR, RHO, GAMMA = 0.3, 0.2, 1e-7
METRICS = ["l2", "adaptive"]


def trained(
    steps: int,
    make: Callable[[nn.Module], Mask],
    factors: Callable[[int, Tensor, Tensor, Callable[[Tensor], Tensor]], Tensor],
    *,
    metric: str = "l2",
    selected_norm: bool = False,
    model: nn.Module | None = None,
    descent: Callable[[int, Tensor], Tensor] = lambda step, gradient: gradient,
) -> list[float]:
    """Train and compare each step with x - lr g(x + e), e = rho m T^2 g / (|T g| + gamma); return the differences.

    Args:
        steps: number of steps.
        make: makes the mask of the model.
        factors: called with the step, x, the gradient at x and a function that returns the gradient at a point; returns
            m, of the shape of x.
        metric: of the ascent; T = 1 or |x| + 0.01.
        selected_norm: the norm is over the coordinates with m > 0.
        model: default: `network()`.
        descent: called with the step and the gradient at x + e; returns the direction of the descent.
    """
    model = model or network()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=LR), RHO, GAMMA, metric=metric, mask=make(model))
    differences = []
    for step, (images, labels) in enumerate(batches(steps)):
        x = flat(model)

        def at(point: Tensor, images: Tensor = images, labels: Tensor = labels) -> Tensor:
            return gradient(model, point, images, labels)

        g = at(x)
        m = factors(step, x, g, at).double()
        scale = x.abs() + 0.01 if metric == "adaptive" else torch.ones_like(x)
        norm = ((m > 0) * scale * g if selected_norm else scale * g).norm()
        expected = x - LR * descent(step, at(x + RHO * m * scale**2 * g / (norm + GAMMA)))
        opt.step(closure_of(model, opt, images, labels))
        differences.append((flat(model) - expected).abs().max().item())
    return differences


def mask_of(mask: Mask, params: Sequence[Tensor]) -> Tensor:
    """Return the mask of every coordinate, one vector."""
    masks = mask.state_dict(params)["masks"]
    return torch.cat([masks[i].reshape(-1).double() for i in range(len(params))])
