"""SAM steps with control over single samples, written out with functional calls."""

import torch
from torch.nn import functional

from lsam_hpc import SAM

LR, RHO, GAMMA = 0.3, 0.2, 1e-3
EXACT = {"rtol": 0, "atol": 1e-12}


def optimizer(model, **options):
    return SAM(torch.optim.SGD(model.parameters(), lr=LR), RHO, GAMMA, **options)


def losses_of(model, x, y, calls=None):
    """Return the function `losses`; append the argument of each call to `calls`."""

    def losses(chosen):
        if calls is not None:
            calls.append(chosen)
        a, b = (x, y) if chosen is None else (x[chosen], y[chosen])
        return functional.cross_entropy(model(a), b, reduction="none")

    return losses


def sample_losses(model, at, x, y):
    """Return the losses of the samples at a vector of parameters, by functional calls alone."""
    shapes = {name: p.shape for name, p in model.named_parameters()}
    pieces = at.split([s.numel() for s in shapes.values()])
    params = {n: v.view(s) for (n, s), v in zip(shapes.items(), pieces, strict=True)}
    return functional.cross_entropy(torch.func.functional_call(model, params, (x,)), y, reduction="none")


def weighted_gradient(model, at, x, y, weights):
    """Return grad sum_i weights_i l_i at a vector of parameters."""
    return torch.func.grad(lambda v: (weights * sample_losses(model, v, x, y)).sum())(at)


def ascent_of(model, at, x, y, weights):
    g = weighted_gradient(model, at, x, y, weights)
    return RHO * g / (g.norm() + GAMMA)


def uniform(n):
    return torch.full((n,), 1 / n, dtype=torch.float64)
