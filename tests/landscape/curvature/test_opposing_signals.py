"""Outliers against pairs of samples that were planted, and against losses and gradients of single samples."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from lsam_hpc import InputError
from lsam_hpc.landscape import outliers
from lsam_hpc.landscape.curvature.opposing_signals import sample
from lsam_hpc.landscape.objective import Objective
from tests.helpers.landscapes import function

PAIRS, QUIET = 4, 60


def planted(noise):
    """Return a logistic regression with PAIRS pairs of one strong feature and both labels, among quiet samples.

    The step moves every strong feature's weight towards class 1, so that the loss of the sample of class 0 rises. The
    strengths differ, and so do the changes. Returns the objective, both states and the indices of the pairs.
    """
    rng = np.random.default_rng(0)
    x = 0.05 * rng.standard_normal((QUIET + 2 * PAIRS, PAIRS + 3))
    y = rng.integers(0, 2, len(x))
    chosen = rng.permutation(len(x))[: 2 * PAIRS].reshape(PAIRS, 2)
    for feature, pair in enumerate(chosen):
        for label, index in enumerate(pair):
            x[index] = noise * rng.standard_normal(x.shape[1])
            x[index, feature] = 8.0 - feature
            y[index] = label
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y)
    f = Objective(
        nn.Linear(PAIRS + 3, 2, bias=False).double(), list(zip(inputs.split(7), targets.split(7), strict=True))
    )
    first = torch.zeros(2, PAIRS + 3, dtype=torch.float64)
    second = first.clone()
    second[1, :PAIRS] = 0.2
    return f, first.reshape(-1), second.reshape(-1), chosen


def test_planted_pairs_are_found():
    f, first, second, chosen = planted(noise=0.0)
    result = outliers(f, first, second, count=PAIRS)
    np.testing.assert_array_equal(result.rising, chosen[:, 0])
    np.testing.assert_array_equal(result.falling, chosen[:, 1])
    np.testing.assert_allclose(result.cosines, -np.eye(PAIRS), atol=1e-12)
    assert sorted(result.pairs) == [(i, i) for i in range(PAIRS)]
    rise = np.log1p(np.exp(0.2 * (8.0 - np.arange(PAIRS)))) - math.log(2)  # of -log softmax at logits 0 and 0.2 x
    np.testing.assert_allclose(result.change[result.rising], rise, rtol=1e-12)
    assert 0.7 < result.share < 1
    f, first, second, chosen = planted(noise=0.3)
    result = outliers(f, first, second, count=PAIRS)
    found = {(int(result.rising[i]), int(result.falling[j])) for i, j in result.pairs}
    assert found == set(map(tuple, chosen.tolist()))
    assert all(result.cosines[pair] < -0.95 for pair in result.pairs)


def networks():
    return {
        "tanh": nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)),
        "batch norm": nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)),
    }


@pytest.mark.parametrize("name", networks())
def test_losses_and_angles_equal_those_of_single_samples(name):
    torch.manual_seed(1)
    model = networks()[name].double()
    x, y = torch.randn(23, 3, dtype=torch.float64), torch.randint(3, (23,))
    f = Objective(model, [(x[:9], y[:9]), (x[9:], y[9:])])
    first = f.start()
    second = first + 0.5 * torch.randn_like(first)
    calls = []
    result = outliers(f, first, second, count=5, advance=lambda: calls.append(0))
    assert len(calls) == 2 * 2 + 10
    for losses, state in ((result.before, first), (result.after, second)):
        with f.at(state), torch.no_grad():
            np.testing.assert_allclose(losses, functional.cross_entropy(model(x), y, reduction="none"), rtol=1e-12)
        assert losses.mean() == pytest.approx(f(state).loss, rel=1e-12)
    order = np.argsort(result.after - result.before)
    np.testing.assert_array_equal(result.rising, order[::-1][:5])
    np.testing.assert_array_equal(result.falling, order[:5])
    sizes = np.abs(result.after - result.before)
    assert result.share == pytest.approx(sizes[[*order[::-1][:5], *order[:5]]].sum() / sizes.sum(), rel=1e-12)
    with f.at((first + second) / 2):
        gradients = []
        for i in (*result.rising, *result.falling):
            loss = functional.cross_entropy(model(x[i : i + 1]), y[i : i + 1])
            gradients.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, f.params)]).numpy())
    g = np.array(gradients)
    np.testing.assert_allclose(result.norms, np.linalg.norm(g, axis=1), rtol=1e-12)
    unit = g / np.linalg.norm(g, axis=1, keepdims=True)
    np.testing.assert_allclose(result.cosines, unit[:5] @ unit[5:].T, atol=1e-12)
    rest, expected = set(itertools.product(range(5), range(5))), []
    while rest and result.cosines[best := min(rest, key=lambda pair: result.cosines[pair])] < 0:
        expected.append(best)
        rest = {pair for pair in rest if pair[0] != best[0] and pair[1] != best[1]}
    assert result.pairs == expected
    assert len(expected) >= 2


def test_the_product_of_gradient_and_step_is_the_change_to_third_order():
    f, _, first, _ = planted(noise=0.3)
    errors = []
    for part in (0.5, 0.25):
        step = part * first
        result = outliers(f, first, first + step, count=1)
        index = int(result.rising[0])
        one = Objective(f.model, [sample(f, index)])
        middle = first + step / 2
        slope = float(one.gradient(middle)[1] @ step)
        assert result.norms[0] == pytest.approx(float(torch.linalg.vector_norm(one.gradient(middle)[1])), rel=1e-12)
        errors.append(abs(result.change[index] - slope))
    assert 6 < errors[0] / errors[1] < 10


def test_less_outliers_than_asked_for():
    f, first, second, _ = planted(noise=0.0)
    result = outliers(f, first, first, count=3)
    assert (len(result.rising), len(result.falling), result.pairs, result.share) == (0, 0, [], 0.0)
    result = outliers(f, first, second, count=1000)
    assert len(result.rising) + len(result.falling) == QUIET + 2 * PAIRS
    assert result.share == pytest.approx(1)
    assert (result.change[result.rising] > 0).all()
    assert (result.change[result.falling] < 0).all()


def test_input_errors():
    f, first, second, _ = planted(noise=0.0)
    with pytest.raises(InputError, match="count: expected 1 or more, found 0"):
        outliers(f, first, second, count=0)
    broken = function(lambda w: w.sum() * math.nan, 2)
    with pytest.raises(InputError, match="loss: expected a finite number for each sample, found nan for 0"):
        outliers(broken, torch.zeros(2), torch.ones(2))
