"""Error, likelihood, Brier score and calibration of predicted class probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError

BINS = 15  # of equal width; Guo et al. 2017, section 5
EDGES = np.linspace(0, 1, BINS + 1)


@dataclass(frozen=True)
class Reliability:
    """Sums over the predictions in each bin of the confidence, shape (BINS,) each; bin i is (EDGES[i], EDGES[i + 1]].

    The confidence is the probability of the predicted class, the one with the largest probability.

    Args:
        counts: number of predictions.
        confidences: sum of the confidences.
        hits: number of correct predictions.
    """

    counts: NDArray[np.int64]
    confidences: NDArray[np.float64]
    hits: NDArray[np.int64]

    @property
    def confidence(self) -> NDArray[np.float64]:
        """Mean confidence in each bin; NaN in empty ones."""
        return _ratio(self.confidences, self.counts)

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of correct predictions in each bin; NaN in empty ones."""
        return _ratio(self.hits, self.counts)

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean over all predictions of their bin's |accuracy - confidence|."""
        return float(np.abs(self.hits - self.confidences).sum() / self.counts.sum())


@dataclass(frozen=True)
class Scores:
    """How good predictions are; less is better in all of them.

    Args:
        error: share of wrong predictions, in %.
        losses: -log of the true class's probability, shape (N,).
        brier: mean of the squared distance between the probabilities and the true class's one-hot vector, 0 to 2.
        ece: expected calibration error, 0 to 1.
        reliability: what the calibration error was computed from.
    """

    error: float
    losses: NDArray[np.float64]
    brier: float
    ece: float
    reliability: Reliability

    @property
    def nll(self) -> float:
        """Negative log-likelihood: mean of `losses`, infinite if a true class has probability 0."""
        return float(self.losses.mean())


def scores(probabilities: NDArray[np.floating], targets: NDArray[np.integer]) -> Scores:
    """Return error, negative log-likelihood, Brier score and calibration of predictions.

    Args:
        probabilities: of the classes, rows that add up to 1, shape (N, classes).
        targets: true classes, shape (N,).

    Raises:
        InputError: a target is no class, or the rows are not probabilities.

    Source: Guo et al. 2017 (arXiv 1706.04599), equation 3, for the calibration error; Brier 1950, "Verification of
    Forecasts Expressed in Terms of Probability".
    """
    p, y = np.asarray(probabilities, np.float64), np.asarray(targets)
    if p.ndim != 2 or y.shape != p.shape[:1] or not len(y):
        raise InputError(f"probabilities: expected a row for each target, found shapes {p.shape} and {y.shape}")
    if not (np.isfinite(p).all() and (p >= 0).all() and np.allclose(p.sum(1), 1, atol=1e-6)):
        raise InputError("probabilities: expected rows of numbers >= 0 that add up to 1, found others")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= p.shape[1]:
        raise InputError(f"targets: expected classes from 0 to {p.shape[1] - 1}, found others")
    of_true = p[np.arange(len(y)), y]
    predicted, confidence = p.argmax(1), np.minimum(p.max(1), 1.0)
    hits = predicted == y
    bins = np.searchsorted(EDGES, confidence) - 1
    reliability = Reliability(
        np.bincount(bins, minlength=BINS),
        np.bincount(bins, confidence, BINS).astype(np.float64),
        np.bincount(bins[hits], minlength=BINS),
    )
    with np.errstate(divide="ignore"):
        losses = -np.log(of_true)
    brier = float(((p**2).sum(1) - 2 * of_true + 1).mean())
    return Scores(100 * float(1 - hits.mean()), losses, brier, reliability.ece, reliability)


def mean_scores(several: Sequence[Scores]) -> Scores:
    """Return the mean scores of several predictors of the same targets; their bins are added up."""
    return Scores(
        float(np.mean([s.error for s in several])),
        np.mean([s.losses for s in several], axis=0),
        float(np.mean([s.brier for s in several])),
        float(np.mean([s.ece for s in several])),
        Reliability(
            np.sum([s.reliability.counts for s in several], axis=0),
            np.sum([s.reliability.confidences for s in several], axis=0),
            np.sum([s.reliability.hits for s in several], axis=0),
        ),
    )


def _ratio(sums: NDArray[np.generic], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)
    return ratio
