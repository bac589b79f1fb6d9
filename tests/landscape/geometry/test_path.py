"""Barriers of a known double well, and a Bezier curve whose optimum is found by brute force."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lsam_hpc import InputError
from lsam_hpc.landscape.geometry.path import barrier, bezier, curve, find_curve, line, lines
from lsam_hpc.landscape.objective import Objective
from tests.helpers.landscapes import function, images


def well(x):
    """(x^2 - 1)^2 + tilt: minima near -1 and 1 at different heights, and a barrier of height 1 at 0."""
    return (x[0] ** 2 - 1) ** 2 + 0.25 * x[0] + (x[1:] ** 2).sum()


def test_the_double_well():
    f = function(well, 3)
    profile = line(f, np.array([-1.0, 0, 0]), np.array([1.0, 0, 0]), 21)
    x = 2 * profile.t - 1
    np.testing.assert_allclose(profile.loss, (x**2 - 1) ** 2 + 0.25 * x, rtol=1e-12, atol=1e-12)
    assert profile.barrier == pytest.approx(1, rel=1e-12)  # above the line between the ends, -0.25 and 0.25
    assert np.isnan(profile.error).all()


def test_no_barrier_in_a_bowl_and_none_below_zero():
    f = function(lambda x: x @ x, 2)
    assert line(f, np.array([-1.0, 0.3]), np.array([2.0, 0.5]), 9).barrier == 0
    assert barrier([0, 0.5, 1], [0.1, 0.1, 0.1]) == 0
    assert math.isnan(barrier([0, 0.5, 1], [0.1, np.nan, 0.1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_no_barrier(dtype):
    # A linear classifier's cross-entropy is convex: there is no barrier on any line.
    model = nn.Linear(4, 3).to(dtype)
    f = Objective(model, [(x.to(dtype), y) for x, y in images()])
    a, b = torch.randn(2, f.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    lengths = np.logspace(-9, 1, 21)
    profiles = [line(f, a, a + length * b, 25) for length in lengths]
    heights = [barrier(p.t, p.loss.astype(np.float64), 0.0) for p in profiles]
    assert max(heights) > 0  # what rounding alone does
    assert [p.barrier for p in profiles] == [0] * len(lengths)


def test_a_low_barrier_is_kept():
    f = function(lambda x: 1e-12 * well(x), 3)
    assert line(f, np.array([-1.0, 0, 0]), np.array([1.0, 0, 0]), 21).barrier == pytest.approx(1e-12, rel=1e-6)
    # Of losses in float32 it is not known.
    assert barrier([0, 0.5, 1], [0.1, 0.1 + 1e-6, 0.1], np.finfo(np.float32).eps) == 0
    assert barrier([0, 0.5, 1], [0.1, 0.1 + 1e-4, 0.1], np.finfo(np.float32).eps) == pytest.approx(1e-4)
    assert barrier([0, 0.5, 1], [1e3, 1e3 + 1e-4, 1e3], np.finfo(np.float32).eps) == 0


def test_the_matrix_of_three_states():
    f = function(well, 3)
    states = [np.array([-1.0, 0, 0]), np.array([1.0, 0, 0]), np.array([1.0, 1.0, 0])]
    matrix = lines(f, states, ["a", "b", "c"], 21)
    np.testing.assert_array_equal(matrix.barriers, matrix.barriers.T)
    np.testing.assert_array_equal(matrix.barriers.diagonal(), 0)
    assert matrix.barriers[0, 1] == pytest.approx(1, rel=1e-12)
    assert matrix.barriers[1, 2] == 0
    for i in range(3):
        for j in range(3):
            at = [float(f(torch.lerp(f.vector(states[i]), f.vector(states[j]), float(t))).loss) for t in matrix.t]
            np.testing.assert_allclose(matrix.loss[i, j], at, rtol=1e-12, atol=1e-12)


def test_each_state_is_evaluated_once():
    calls = []
    f = function(lambda x: calls.append(1) or x @ x, 2)
    lines(f, [np.zeros(2), np.ones(2), np.full(2, 3.0)], ["a", "b", "c"], 5)
    assert len(calls) == 3 + 3 * 3


def test_a_curve_around_a_hill():
    # A ring of minima: the straight line between two of its points crosses the barrier inside the ring.
    angle = 0.3
    f = function(lambda x: (1 - x @ x) ** 2, 2)
    ends = np.array([[-math.cos(angle), math.sin(angle)], [math.cos(angle), math.sin(angle)]])
    straight = line(f, *ends, 41)
    assert straight.barrier == pytest.approx(math.cos(angle) ** 4, rel=1e-12)
    middle = find_curve(f, *ends, steps=600, lr=0.1)
    # By brute force: by symmetry the best control point is (0, h).
    t = np.linspace(0, 1, 2001)
    heights = np.linspace(0.5, 4, 3501)
    x = (t**2 - (1 - t) ** 2) * math.cos(angle)
    y = ((1 - t) ** 2 + t**2) * math.sin(angle) + 2 * t * (1 - t) * heights[:, None]
    mean = ((1 - x**2 - y**2) ** 2).mean(1)
    best = heights[mean.argmin()]
    np.testing.assert_allclose(middle.numpy(), [0, best], atol=0.02)
    curved = curve(f, ends[0], middle, ends[1], 41)
    assert curved.loss[[0, -1]] == pytest.approx(0, abs=1e-12)
    assert curved.barrier < 0.03 * straight.barrier
    np.testing.assert_allclose(curved.loss.mean(), mean.min(), atol=5e-3)


def test_the_ends_of_a_bezier_curve_and_its_middle():
    a, m, b = torch.randn(3, 5, dtype=torch.float64)
    torch.testing.assert_close(bezier(a, m, b, 0.0), a)
    torch.testing.assert_close(bezier(a, m, b, 1.0), b)
    torch.testing.assert_close(bezier(a, m, b, 0.5), a / 4 + m / 2 + b / 4)


def test_batch_norm_is_recalibrated_at_each_point():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    data = [(torch.randn(40, 3, dtype=torch.float64), torch.randint(2, (40,)))]
    f, kept = Objective(model, data), Objective(model, data, batch_norm="keep")
    a, b = torch.randn(2, f.size, dtype=torch.float64)
    recalibrated, stale = line(f, a, b, 5), line(kept, a, b, 5)
    np.testing.assert_allclose(recalibrated.loss, [f(torch.lerp(a, b, t)).loss for t in recalibrated.t], rtol=1e-12)
    assert np.abs(recalibrated.loss - stale.loss).min() > 1e-3


def test_bad_input():
    f = function(well, 3)
    with pytest.raises(InputError, match="path: expected two states or more, found 1"):
        lines(f, [np.zeros(3)], ["a"])
    with pytest.raises(InputError, match="points: expected 3 or more, found 2"):
        line(f, np.zeros(3), np.ones(3), 2)
    with pytest.raises(InputError, match="points: expected 3 or more, found 2"):
        curve(f, np.zeros(3), np.zeros(3), np.ones(3), 2)
    with pytest.raises(InputError, match="curve: expected steps >= 1, lr > 0 and momentum"):
        find_curve(f, np.zeros(3), np.ones(3), 0)
    with pytest.raises(InputError, match=r"curve: expected a finite loss and gradient, found .*smaller learning rate"):
        find_curve(f, np.zeros(3), np.ones(3) * 3, 200, 1e3)
