"""Scores of predicted probabilities: planted calibration in closed form, brute force, and scikit-learn."""

import math

import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.landscape.prediction.calibration import BINS, mean_scores, scores


def planted(confidences, counts, hits):
    """Return two-class predictions: of `counts[i]` ones with `confidences[i]`, `hits[i]` are correct."""
    p = np.repeat(np.stack([confidences, 1 - np.array(confidences)], 1), counts, 0)
    y = np.concatenate([np.arange(n) >= k for n, k in zip(counts, hits, strict=True)]).astype(int)
    return p, y


def test_calibrated_predictions_have_no_calibration_error():
    s = scores(*planted([0.6, 0.8, 0.95], [50, 10, 40], [30, 8, 38]))
    assert s.ece == pytest.approx(0, abs=1e-15)
    assert s.error == pytest.approx(100 - 76)
    pairs = ((0.5, 0.6), (0.1, 0.8), (0.4, 0.95))
    entropy = -sum(w * (c * math.log(c) + (1 - c) * math.log(1 - c)) for w, c in pairs)
    assert s.nll == pytest.approx(entropy, rel=1e-14)
    assert s.brier == pytest.approx(sum(w * 2 * c * (1 - c) for w, c in pairs), rel=1e-14)


def test_planted_gaps_are_the_calibration_error():
    # accuracies 0.4, 1 and 0.5 where the confidences are 0.6, 0.8 and 0.95
    s = scores(*planted([0.6, 0.8, 0.95], [50, 10, 40], [20, 10, 20]))
    assert s.ece == pytest.approx(0.5 * 0.2 + 0.1 * 0.2 + 0.4 * 0.45, rel=1e-14)
    filled = s.reliability.counts > 0
    np.testing.assert_allclose(s.reliability.confidence[filled], [0.6, 0.8, 0.95])
    np.testing.assert_allclose(s.reliability.accuracy[filled], [0.4, 1.0, 0.5])
    assert np.isnan(s.reliability.accuracy[~filled]).all()


def test_gaps_of_opposite_sign_cancel_within_a_bin_and_not_between_bins():
    # 0.61 and 0.65 share the bin (9/15, 10/15]; 0.59 is in the one below
    together = scores(*planted([0.61, 0.65], [100, 100], [51, 75]))
    apart = scores(*planted([0.59, 0.65], [100, 100], [49, 75]))
    assert together.ece == pytest.approx(0, abs=1e-14)
    assert apart.ece == pytest.approx(0.1, rel=1e-13)


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_random_predictions_against_brute_force_and_scikit_learn(classes):
    rng = np.random.default_rng(classes)
    p = rng.dirichlet(np.full(classes, 0.4), 400)
    p[:40] = 1 / classes
    y = rng.integers(classes, size=400)
    s = scores(p, y)
    ece = 0.0
    for m in range(BINS):
        inside = [i for i in range(400) if m / BINS < max(p[i]) <= (m + 1) / BINS]
        if inside:
            accuracy = np.mean([p[i].argmax() == y[i] for i in inside])
            ece += len(inside) / 400 * abs(accuracy - np.mean([max(p[i]) for i in inside]))
    assert s.ece == pytest.approx(ece, rel=1e-12)
    assert s.reliability.counts.sum() == 400
    metrics = pytest.importorskip("sklearn.metrics")
    assert s.nll == pytest.approx(metrics.log_loss(y, p, labels=range(classes)), rel=1e-12)
    assert s.error == pytest.approx(100 * (1 - metrics.accuracy_score(y, p.argmax(1))))
    one_hot = np.eye(classes)[y]
    assert s.brier == pytest.approx(((p - one_hot) ** 2).sum(1).mean(), rel=1e-12)
    if classes == 2:
        assert s.brier == pytest.approx(2 * metrics.brier_score_loss(y, p[:, 1]), rel=1e-12)


def test_certain_predictions():
    p = np.eye(3)
    right, wrong = scores(p, np.arange(3)), scores(p, np.array([1, 2, 0]))
    assert (right.error, right.nll, right.brier, right.ece) == (0, 0, 0, 0)
    assert (wrong.error, wrong.nll, wrong.brier, wrong.ece) == (100, math.inf, 2, 1)


def test_the_mean_of_scores_is_that_of_each_and_its_bins_are_those_of_all():
    one, other = (scores(*planted([0.6], [100], [hits])) for hits in (40, 80))
    mean = mean_scores([one, other])
    assert mean.error == pytest.approx(40)
    assert mean.ece == pytest.approx(0.2)
    assert mean.nll == pytest.approx((one.nll + other.nll) / 2)
    assert mean.reliability.counts.sum() == 200
    assert mean.reliability.hits.sum() == 120


@pytest.mark.parametrize(
    ("p", "y", "message"),
    [
        ([[0.5, 0.4]], [0], "probabilities: expected rows of numbers >= 0 that add up to 1"),
        ([[1.5, -0.5]], [0], "probabilities: expected rows of numbers >= 0 that add up to 1"),
        ([[math.nan, 1.0]], [0], "probabilities: expected rows of numbers >= 0 that add up to 1"),
        ([[0.5, 0.5]], [2], "targets: expected classes from 0 to 1"),
        ([[0.5, 0.5]], [0.5], "targets: expected classes from 0 to 1"),
        ([[0.5, 0.5]], [0, 1], "probabilities: expected a row for each target"),
        (np.empty((0, 2)), np.empty(0, int), "probabilities: expected a row for each target"),
    ],
)
def test_what_is_no_probability(p, y, message):
    with pytest.raises(InputError, match=message):
        scores(np.array(p), np.array(y))
