"""Sharpness against brute force in two dimensions and closed forms of linear and quadratic losses."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lsam_hpc import InputError
from lsam_hpc.landscape.curvature.sharpness import RHOS, sharpness
from lsam_hpc.landscape.objective import Objective

POINT = torch.tensor([1.3, -0.7], dtype=torch.float64)
X, Y = torch.linspace(-1, 1, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


class Two(nn.Module):
    """A model of two parameters whose loss has several maxima in a large ball."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(POINT.clone())

    def forward(self, x):
        a, b = self.w
        return torch.stack([torch.sin(3 * a) * x + b**2 + 2, a * b * x + torch.cos(2 * b), a * x - b - 2], 1)


def loss(a, b, samples, normalise):
    """Return the mean loss of the samples at many points, by numpy."""
    total = 0.0
    for x, y in zip(X.numpy()[samples], Y.numpy()[samples], strict=True):
        z = np.stack([np.sin(3 * a) * x + b**2 + 2, a * b * x + np.cos(2 * b), a * x - b - 2])
        if normalise:
            z = z - z.mean(0)
            z = z / np.maximum(np.sqrt((z**2).sum(0)), 1e-10)
        total = total + np.log(np.exp(z).sum(0)) - z[y]
    return total / len(X[samples])


def brute_force(rho, norm, adaptive, normalise, m):
    """Return the largest rise on a fine grid of the ball and on its boundary, averaged over the batches."""
    grid = rho * np.linspace(-1, 1, 301)
    u, v = (part.reshape(-1) for part in np.meshgrid(grid, grid))
    if norm == "l2":
        inside, turn = np.hypot(u, v) <= rho, np.linspace(0, 2 * np.pi, 5001)
        u, v = np.r_[u[inside], rho * np.cos(turn)], np.r_[v[inside], rho * np.sin(turn)]
    scale = np.abs(POINT.numpy()) if adaptive else np.ones(2)
    a, b = POINT[0].item() + scale[0] * u, POINT[1].item() + scale[1] * v
    parts = [slice(at, at + m) for at in range(0, len(X), m)]
    rises = [(loss(a, b, s, normalise).max() - loss(*POINT.numpy(), s, normalise)) * len(X[s]) for s in parts]
    return sum(rises) / len(X)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_worst_case_equals_brute_force(norm, adaptive, normalise):
    f = Objective(Two(), [(X[:3], Y[:3]), (X[3:], Y[3:])])
    # Normalised logits have kinks: in a larger ball an ascent may end at a local maximum.
    for rho, m in ((0.05, 8), (0.1, 8), (0.1, 3)) if normalise else ((0.1, 8), (0.5, 8), (0.5, 3), (1.5, 8)):
        expected = brute_force(rho, norm, adaptive, normalise, m)
        result = sharpness(
            f, POINT, rho, "worst", norm, adaptive=adaptive, normalise=normalise, m=m, steps=40, restarts=5
        )
        assert result.value == pytest.approx(expected, rel=1e-3)
        assert result.loss == pytest.approx(float(loss(*POINT.numpy(), slice(None), normalise)), rel=1e-9)
    torch.testing.assert_close(f.start(), POINT)


def test_smaller_batches_are_sharper():
    f = Objective(Two(), [(X, Y)])
    by_m = [sharpness(f, POINT, 0.5, norm="l2", m=m, steps=60, restarts=4).value for m in (1, 2, 4, 8)]
    assert by_m == sorted(by_m, reverse=True)
    assert by_m[0] > 1.1 * by_m[-1]


class Rows(nn.Module):
    """outputs = x * w: with the mean of the outputs as loss, the loss is linear in w."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x):
        return x * self.w


def test_a_linear_loss():
    torch.manual_seed(0)
    w, x = torch.randn(6, dtype=torch.float64), torch.randn(10, 6, dtype=torch.float64)
    w[2] = 0  # an adaptive ball has no extent in this element
    f = Objective(Rows(w.clone()), [(x, torch.zeros(10))], lambda outputs, _: outputs.sum(1).mean())
    g = x.mean(0)
    for adaptive in (False, True):
        scaled = g * w.abs() if adaptive else g
        for norm, expected in (("l2", scaled.norm()), ("linf", scaled.abs().sum())):
            worst = sharpness(f, w, 0.3, "worst", norm, adaptive=adaptive, normalise=False)
            assert worst.value == pytest.approx(0.3 * float(expected), rel=1e-9)
            assert math.isnan(worst.error)
            # The mean of a linear rise is 0: allow 5 standard errors of 100 draws.
            mean = sharpness(f, w, 0.3, "average", norm, adaptive=adaptive, normalise=False, steps=100)
            assert abs(mean.value) < 5 * mean.error


def test_the_average_case_of_a_quadratic_loss():
    x, w = torch.diag(torch.tensor([1.0, 2.0, 3.0])).double(), torch.tensor([1.0, -1.0, 0.5]).double()
    f = Objective(Rows(w.clone()), [(x, x * w)], lambda outputs, targets: (outputs - targets).square().sum(1).mean())
    # f(w + u) = (u1^2 + 4 u2^2 + 9 u3^2) / 3: the mean rise follows from the draws' second moments.
    for norm, moment in (("l2", 0.04), ("linf", 0.04 / 3)):
        for adaptive, expected in ((False, 14 / 3), (True, (1 + 4 + 9 / 4) / 3)):
            result = sharpness(f, w, 0.2, "average", norm, adaptive=adaptive, normalise=False, steps=1000)
            assert abs(result.value - moment * expected) < 5 * result.error  # one false alarm in 1.7 million
            assert result.error < 0.05 * moment * expected


def test_normalised_logits_remove_their_scale():
    f = Objective(nn.Linear(3, 4, bias=False).double(), [(torch.randn(20, 3).double(), torch.randint(4, (20,)))])
    x = torch.randn(12, dtype=torch.float64)
    for case in ("worst", "average"):
        one, ten = (sharpness(f, scale * x, 0.05, case).value for scale in (1, 10))
        assert one == pytest.approx(ten, rel=1e-6)
    raw, tenth = (sharpness(f, scale * x, 0.05, normalise=False).value for scale in (1, 0.1))
    assert raw > 2 * tenth


def test_batch_norm_keeps_the_statistics_of_the_point():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3, affine=False)).double()
    x = torch.randn(40, 3, dtype=torch.float64)
    f = Objective(model, [(x, torch.zeros(40, dtype=torch.long))])
    # With recomputed statistics, outputs and loss would not depend on the scale of the weights.
    assert sharpness(f, f.start(), 0.5, "worst", "linf", normalise=False, m=40).value > 0.1


def test_the_seed_fixes_the_result_and_the_global_generator_is_unchanged():
    f = Objective(Two(), [(X, Y)])
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = sharpness(f, POINT, 0.5, "average")
    assert torch.rand(1) == expected
    assert sharpness(f, POINT, 0.5, "average") == first
    assert sharpness(f, POINT, 0.5, "average", seed=1) != first


def test_the_papers_radii():
    assert RHOS["worst", "linf", True] == (0.001, 0.002, 0.004, 0.008)
    assert len(RHOS) == 8


def test_bad_input():
    f = Objective(Two(), [(X, Y)])
    for options, message in (
        ({"case": "best"}, "case: expected one of average, worst, found 'best'"),
        ({"norm": "l1"}, "norm: expected one of l2, linf, found 'l1'"),
        ({"rho": -1.0}, "rho: expected a number >= 0, found -1"),
        ({"m": 0}, "m: expected 1 or more, found 0"),
        ({"steps": 0}, "steps: expected 1 or more, found 0"),
        ({"restarts": 0}, "restarts: expected 1 or more, found 0"),
    ):
        with pytest.raises(InputError, match=message):
            sharpness(f, POINT, **{"rho": 0.1, **options})
    with pytest.raises(InputError, match="loss: expected a finite number at the given state, found nan"):
        sharpness(f, POINT * torch.nan, 0.1)
    assert sharpness(f, POINT, 0.0).value == 0
