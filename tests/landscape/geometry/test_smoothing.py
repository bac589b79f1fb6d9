"""The smoothed landscape against the closed form for quadratics."""

import math

import numpy as np
import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.landscape.geometry.smoothing import log_mean_exp, normal, smoothed

T, STIFFNESS = 0.3, 2.0


def closed_form(curvatures, y):
    """F of sum a x^2 / 2: a sum of a l / (2 (a + l)) y^2 + T / 2 log(1 + a / l)."""
    a = np.asarray(curvatures)
    return float((a * STIFFNESS / (2 * (a + STIFFNESS)) * y**2 + T / 2 * np.log1p(a / STIFFNESS)).sum())


@pytest.mark.parametrize("curvatures", [[1.0], [4.0, 0.5, 0.0], [0.2] * 10])
def test_a_quadratic(curvatures):
    a = torch.tensor(curvatures, dtype=torch.float64)
    for seed, place in ((1, 0.0), (2, 0.7)):
        y = torch.full((len(a),), place, dtype=torch.float64)
        estimate = smoothed(lambda x: float(0.5 * (a * x**2).sum()), y, T, STIFFNESS, 20_000, seed=seed)
        # Within 5 standard errors: one false alarm in a million. The bias of the logarithm is far below one of them.
        assert abs(estimate.value - closed_form(curvatures, y.numpy())) < 5 * estimate.error
        assert 0 < estimate.error < 0.02
        assert 0.05 * 20_000 < estimate.effective <= 20_000


def test_the_standard_error_is_that_of_repeated_estimates():
    estimates = [
        smoothed(lambda x: float(0.5 * x @ x), torch.ones(2).double(), T, STIFFNESS, 200, seed=s) for s in range(400)
    ]
    spread = np.std([estimate.value for estimate in estimates], ddof=1)
    # The spread of 400 estimates has a standard error of 3.5 %.
    assert np.mean([estimate.error for estimate in estimates]) == pytest.approx(spread, rel=0.18)
    # Jensen: never below F on average, whatever the number of samples.
    few = [
        smoothed(lambda x: float(0.5 * x @ x), torch.ones(2).double(), T, STIFFNESS, 2, seed=s).value
        for s in range(2000)
    ]
    assert np.mean(few) > closed_form([1.0, 1.0], np.ones(2))


def test_a_constant_f_and_a_high_temperature():
    assert smoothed(lambda x: 3.25, torch.zeros(5), T, STIFFNESS, 4).value == pytest.approx(3.25, rel=1e-12)
    hot = smoothed(lambda x: float(x[0]), torch.zeros(3).double(), 1e6, 1e6, 1000, seed=3)
    draws = [float(normal(torch.zeros(3).double(), 3, i)[0]) for i in range(1000)]
    assert hot.value == pytest.approx(np.mean(draws), abs=1e-5)


def test_random_numbers_are_common_to_all_points():
    def f(x):
        return float(0.5 * x @ x)

    a, b = (smoothed(f, torch.full((3,), y).double(), T, STIFFNESS, 50, seed=1) for y in (0.0, 1e-4))
    assert abs(a.value - b.value) < 1e-3 < a.error
    torch.testing.assert_close(normal(torch.zeros(7), 0, 3), normal(torch.ones(7), 0, 3), rtol=0, atol=0)
    assert not torch.equal(normal(torch.zeros(7), 0, 3), normal(torch.zeros(7), 0, 4))


def test_values_that_are_far_apart_or_not_finite():
    assert log_mean_exp([1e4, 2e4], 1e-3).value == pytest.approx(1e4 + 1e-3 * math.log(2), rel=1e-12)
    assert log_mean_exp([1.0, math.inf], 1.0).value == pytest.approx(1 + math.log(2))
    assert log_mean_exp([1.0, math.inf], 1.0).effective == 1
    assert math.isnan(log_mean_exp([1.0, math.nan], 1.0).value)
    assert log_mean_exp([math.inf, math.inf], 1.0).value == math.inf


def test_bad_input():
    for words, message in (
        ((0.0, 1.0, 4), "temperature: expected a number > 0 for the smoothed loss, found 0.0"),
        ((1.0, math.inf, 4), "stiffness: expected a number > 0 for the smoothed loss, found inf"),
        ((1.0, 1.0, 1), "samples: expected 2 or more, found 1"),
    ):
        with pytest.raises(InputError, match=message):
            smoothed(lambda x: 0.0, torch.zeros(1), *words)
