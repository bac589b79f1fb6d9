"""Average-case and worst-case sharpness: how much the loss rises within a ball of parameters.

Parameters move to x + c * u with |u| <= rho, where c is |x| element by element (adaptive, as in ASAM) or 1. The two
cases and norms are:

    average, l2:    mean of f(x + c u) - f(x) over u ~ N(0, rho^2) in each element
    average, linf:  mean over u uniform in [-rho, rho] in each element
    worst, l2:      max of f(x + c u) - f(x) over |u|_2 <= rho
    worst, linf:    max over max |u_i| <= rho

computed for each batch of m samples, then averaged over the batches (m-sharpness). With normalised logits the loss is
taken at z / |z|, where z is the logits minus their mean, so that the scale of the logits has no effect. BatchNorm's
statistics stay those of x.

Auto-PGD searches the worst case in u, where the ball has the same radius in all directions. The authors' program
projects in x: this needs a search for the multiplier in each step and divides by parameters that are 0. The maximum is
the same.

Source: Andriushchenko, Croce, Mueller, Hein and Flammarion 2023, "A Modern Look at the Relationship between Sharpness
and Generalization" (arXiv 2302.07011), whose settings are the defaults; Kwon et al. 2021, "ASAM" (arXiv 2102.11600);
Croce and Hein 2020, "Reliable Evaluation of Adversarial Robustness", for Auto-PGD; Foret et al. 2021 for m.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.curvature.products import seeded
from lsam_hpc.landscape.objective import Batch, Objective

CASES, NORMS = ("average", "worst"), ("l2", "linf")
M, SAMPLES, STEPS = 128, 1024, 20
# Radii of the paper's ResNets: (case, norm, adaptive) -> rho.
RHOS = {
    ("average", "l2", False): (0.05, 0.1, 0.2, 0.4),
    ("average", "l2", True): (0.05, 0.1, 0.2, 0.4),
    ("average", "linf", False): (0.1, 0.2, 0.4, 0.8),
    ("average", "linf", True): (0.1, 0.2, 0.4, 0.8),
    ("worst", "l2", False): (0.25, 0.5, 1.0, 2.0),
    ("worst", "l2", True): (0.25, 0.5, 1.0, 2.0),
    ("worst", "linf", False): (0.0005, 0.001, 0.002, 0.004),
    ("worst", "linf", True): (0.001, 0.002, 0.004, 0.008),
}
_MOMENTUM = 0.75  # of Auto-PGD
_RISES = 0.75  # share of steps that must raise the loss; otherwise the step size is halved


class Sharpness(NamedTuple):
    """How much the loss rises."""

    value: float  # rise of the mean loss
    error: float  # standard error of the mean over draws (average case); NaN for the worst case
    loss: float  # at the point itself


def sharpness(
    objective: Objective,
    x: Tensor,
    rho: float,
    case: str = "worst",
    norm: str = "linf",
    *,
    adaptive: bool = True,
    normalise: bool = True,
    m: int = M,
    steps: int = STEPS,
    restarts: int = 1,
    seed: int = 0,
) -> Sharpness:
    """Return the sharpness at a point.

    Args:
        objective: f on fixed data.
        x: the point, shape (P,).
        rho: radius, in units of the parameters, or relative to each parameter if adaptive.
        case: `"worst"` (default) or `"average"`.
        norm: `"linf"` (default) or `"l2"`.
        adaptive: the ball's radius is relative to each parameter. Default: True.
        normalise: take the loss of normalised logits. Default: True.
        m: samples in a batch. Default: 128.
        steps: steps of the ascent, or draws in the average case. Default: 20.
        restarts: number of ascents; the first starts at x, the others at random points of the ball. Default: 1.
        seed: of the random points.

    Raises:
        InputError: an option is unknown or out of range, or the loss is not finite.
    """
    for option, value, known in (("case", case, CASES), ("norm", norm, NORMS)):
        if value not in known:
            raise InputError(f"{option}: expected one of {', '.join(known)}, found {value!r}")
    if not 0 <= rho < math.inf:
        raise InputError(f"rho: expected a number >= 0, found {rho}")
    for option, count in (("m", m), ("steps", steps), ("restarts", restarts)):
        if count < 1:
            raise InputError(f"{option}: expected 1 or more, found {count}")
    batches = _rebatched(objective.batches, m)
    shares = [len(targets) / objective.samples for _, targets in batches]
    with _ball(objective, x, adaptive=adaptive, normalise=normalise) as f, seeded(seed, objective.device):
        zero = torch.zeros(objective.size, dtype=objective.dtype, device=objective.device)
        losses = [f(zero, batch)[0] for batch in batches]
        loss = sum(share * batch_loss for share, batch_loss in zip(shares, losses, strict=True))
        if not math.isfinite(loss):
            raise InputError(f"loss: expected a finite number at the given state, found {loss}")
        if case == "average":
            rises = torch.tensor(
                [
                    [f(rho * _draw(zero, norm), batch)[0] - batch_loss for _ in range(steps)]
                    for batch, batch_loss in zip(batches, losses, strict=True)
                ]
            )
            draws = (torch.tensor(shares)[:, None] * rises).sum(0).double()
            return Sharpness(
                float(draws.mean()), float(draws.std()) / math.sqrt(steps) if steps > 1 else math.nan, loss
            )
        total_rise = 0.0
        for batch, batch_loss, share in zip(batches, losses, shares, strict=True):
            starts = [zero] + [_random_point(zero, rho, norm) for _ in range(restarts - 1)]
            worst = max(_auto_pgd(f, batch, start, rho=rho, norm=norm, steps=steps) for start in starts)
            total_rise += share * max(worst - batch_loss, 0.0)
        return Sharpness(total_rise, math.nan, loss)


Ball = Callable[..., tuple[float, Tensor]]


@contextmanager
def _ball(objective: Objective, x: Tensor, *, adaptive: bool, normalise: bool) -> Iterator[Ball]:
    """Give a function of u and a batch that returns the batch's loss at x + c u and, on request, its gradient in u."""
    x = objective.vector(x)
    scale = x.abs() if adaptive else torch.ones_like(x)
    shapes = [p.shape for p in objective.params]
    sizes = [p.numel() for p in objective.params]
    with objective.at(x) as model:

        def f(u: Tensor, batch: Batch, *, gradient: bool = False) -> tuple[float, Tensor]:
            pieces = (x + scale * u).split(sizes)
            with torch.no_grad():
                for p, piece, shape in zip(objective.params, pieces, shapes, strict=True):
                    p.copy_(piece.view(shape))
            with torch.set_grad_enabled(gradient):
                outputs = model(batch[0])
                loss = objective.loss(_normalised(outputs) if normalise else outputs, batch[1])
            if not gradient:
                return loss.item(), u
            grads = torch.autograd.grad(loss, objective.params, allow_unused=True, materialize_grads=True)
            return loss.item(), scale * torch.cat([g.reshape(-1) for g in grads]).to(x)

        yield f


def _auto_pgd(f: Ball, batch: Batch, start: Tensor, *, rho: float, norm: str, steps: int) -> float:
    """Return the largest loss that Auto-PGD reaches in the ball."""
    now = before = start
    loss, gradient = f(now, batch, gradient=True)
    best, best_at, best_gradient = loss, now, gradient
    size, halved, best_then, rises, since = 2 * rho, True, best, 0, 0
    checks = _checkpoints(steps)
    for step in range(1, steps + 1):
        length = torch.linalg.vector_norm(gradient)
        direction = gradient.sign() if norm == "linf" else gradient / length.clamp_min(1e-30)
        ahead = _projected(now + size * direction, rho, norm)
        share = _MOMENTUM if step > 1 else 1.0
        now, before = _projected(now + share * (ahead - now) + (1 - share) * (now - before), rho, norm), now
        last, (loss, gradient) = loss, f(now, batch, gradient=True)
        rises += loss > last
        if loss > best:
            best, best_at, best_gradient = loss, now, gradient
        if step in checks:
            stuck = not halved and best == best_then
            halved = rises < _RISES * (step - since) or stuck
            best_then, rises, since = best, 0, step
            if halved:
                size /= 2
                now = before = best_at
                loss, gradient = best, best_gradient
    return best


def _checkpoints(steps: int) -> set[int]:
    """Return the steps at which Auto-PGD may halve its step size (Croce and Hein 2020, section 3.2)."""
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return {math.ceil(share * steps) for share in shares[1:]}


def _projected(u: Tensor, rho: float, norm: str) -> Tensor:
    if norm == "linf":
        return u.clamp(-rho, rho)
    length = torch.linalg.vector_norm(u)
    return u * (rho / length) if length > rho else u


def _draw(zero: Tensor, norm: str) -> Tensor:
    return torch.randn_like(zero) if norm == "l2" else 2 * torch.rand_like(zero) - 1


def _random_point(zero: Tensor, rho: float, norm: str) -> Tensor:
    draw = _draw(zero, norm)
    return rho * draw if norm == "linf" else draw * (rho / torch.linalg.vector_norm(draw))


def _normalised(logits: Tensor) -> Tensor:
    centered = logits - logits.mean(-1, keepdim=True)
    unit: Tensor = centered / torch.linalg.vector_norm(centered, dim=-1, keepdim=True).clamp_min(1e-10)
    return unit


def _rebatched(batches: list[Batch], m: int) -> list[Batch]:
    """Return the same samples in batches of m; the last one may be smaller."""
    inputs, targets = (torch.cat([batch[part] for batch in batches]) for part in (0, 1))
    return list(zip(inputs.split(m), targets.split(m), strict=True))
