"""The local learning coefficient: half the number of parameters that a minimum uses.

With L_n the mean loss over n samples, w* the state and beta = 1 / log n,

    lambda = n beta (E[L_n(w)] - L_n(w*)),    w ~ exp(-n beta L_n(w) - gamma / 2 |w - w*|^2)

A regular minimum of d parameters has d / 2; a degenerate (singular) one has less. gamma keeps the chains near the
state, and takes part of the expectation: for a quadratic loss with eigenvalues h the estimate is the sum of
n beta h / (n beta h + gamma) / 2, which is d / 2 only as n grows.

The authors sample by SGLD, whose error grows with the step size and with the noise of mini-batches. Here the chains are
exact (`hmc`), with gradients over all n samples. BatchNorm's statistics stay those of the state.

Source: Lau, Murfet and Wei 2023, "Quantifying degeneracy in singular models via the learning coefficient" (arXiv
2308.12108); Watanabe 2013, "A Widely Applicable Bayesian Information Criterion", for beta.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.chains.diagnosis import ESS, RHAT, CheckResult
from lsam_hpc.landscape.chains.hmc import hmc
from lsam_hpc.landscape.chains.mcmc import MIN_DRAWS, Mixing, mixing
from lsam_hpc.landscape.objective import Objective

GAMMA, CHAINS, DRAWS, WARMUP, LEAPFROG = 100.0, 4, 500, 200, 10
ACCEPTANCE = 0.5  # mean probability of acceptance below which a chain hardly moves
TOLERANCE = 0.05  # relative errors that count as none
ERRORS = 4.0  # standard errors that a mean may differ by


class Chain(NamedTuple):
    """What one chain measured at each draw, and over all of them."""

    loss: NDArray[np.float64]  # L_n, shape (draws,)
    distance: NDArray[np.float64]  # |w - w*|, shape (draws,)
    virial: NDArray[np.float64]  # (w - w*) grad U, shape (draws,); P on average
    mean: NDArray[np.float64]  # of w, shape (P,)
    acceptance: float  # mean probability
    step_size: float


@dataclass(frozen=True)
class LearningCoefficient:
    """The estimate, and the chains that it is from.

    Args:
        loss: L_n(w*).
        at_mean: L_n at the mean of all draws.
        inverse_temperature: n beta.
        size: number of parameters P.
        losses: L_n at each draw, shape (chains, draws).
        distances: |w - w*| at each draw, shape (chains, draws).
        virials: (w - w*) grad U at each draw, shape (chains, draws), with U = n beta L_n + gamma / 2 |w - w*|^2.
        acceptance: mean probability of acceptance of each chain.
        step_size: of each chain's leapfrog steps.
    """

    loss: float
    at_mean: float
    inverse_temperature: float
    size: int
    losses: NDArray[np.float64]
    distances: NDArray[np.float64]
    virials: NDArray[np.float64]
    acceptance: NDArray[np.float64]
    step_size: NDArray[np.float64]

    @property
    def value(self) -> float:
        """The local learning coefficient."""
        return self.inverse_temperature * float((self.losses - self.loss).mean())

    @property
    def error(self) -> float:
        """Standard error of the value: the standard deviation of the draws / sqrt(their effective number)."""
        return self.inverse_temperature * float(self.losses.std(ddof=1)) / math.sqrt(self.mixing.ess)

    @cached_property
    def mixing(self) -> Mixing:
        """Of the loss."""
        return mixing(self.losses)

    @cached_property
    def rhat(self) -> float:
        """The larger R-hat of the loss and of the distance from the state."""
        return float(np.max([self.mixing.rhat, mixing(self.distances).rhat]))

    def checks(self) -> list[CheckResult]:
        """Return whether the chains have converged, and whether the estimate is biased."""
        return [self._agreement(), self._draws(), self._equilibrium(), self._acceptance(), self._minimum()]

    def _agreement(self) -> CheckResult:
        good = self.rhat <= RHAT
        text = f"R-hat of the loss is {self.mixing.rhat:.3f}, the larger one with that of the distance {self.rhat:.3f}"
        if not good:
            text += ": the chains do not agree: raise warmup, leapfrog or draws, or gamma where they wander off"
        return CheckResult("agreement", good, self.rhat, RHAT, text)

    def _draws(self) -> CheckResult:
        ess, needed = min(self.mixing.ess_bulk, self.mixing.ess_tail), float(ESS * len(self.losses))
        text = f"effective sample size of the loss: bulk {self.mixing.ess_bulk:.0f}, tail {self.mixing.ess_tail:.0f}"
        if ess < needed:
            text += f"; at least {needed:.0f} are needed: raise draws or leapfrog"
        return CheckResult("draws", ess >= needed, ess, needed, text)

    def _equilibrium(self) -> CheckResult:
        """In equilibrium the mean of (w - w*) grad U is P, by integration by parts."""
        mean = float(self.virials.mean())
        error = float(self.virials.std(ddof=1)) / math.sqrt(mixing(self.virials).ess)
        allowed = max(TOLERANCE * self.size, ERRORS * error) / self.size
        off = abs(mean / self.size - 1)
        text = f"the mean of (w - w*) grad U is {mean:.5g} +- {error:.2g}, and {self.size} in equilibrium"
        text += "" if off <= allowed else ": the chains are still on their way: raise warmup"
        return CheckResult("equilibrium", off <= allowed, off, allowed, text)

    def _acceptance(self) -> CheckResult:
        lowest = float(self.acceptance.min())
        text = f"steps were accepted with a probability of {lowest:.2f} or more"
        text += "" if lowest >= ACCEPTANCE else ": the step size has not settled: raise warmup"
        return CheckResult("acceptance", lowest >= ACCEPTANCE, lowest, ACCEPTANCE, text)

    def _minimum(self) -> CheckResult:
        lowest = min(float(self.losses.min()), self.at_mean)
        bias = self.inverse_temperature * (self.loss - lowest)
        allowed = max(TOLERANCE * abs(self.value), 2 * self.error)
        good = self.value >= 0 and bias <= allowed
        text = f"the loss is {self.loss:.5g} at the state, {lowest:.5g} at the lowest point that was met"
        if not good:
            text += (
                f": the state is not a minimum over these samples, and the estimate is too low by {bias:.3g} or more: "
                "train on, or use the samples that it was trained with"
            )
        return CheckResult("minimum", good, bias, allowed, text)


def learning_coefficient(
    objective: Objective,
    x: Tensor,
    *,
    gamma: float = GAMMA,
    chains: int = CHAINS,
    draws: int = DRAWS,
    warmup: int = WARMUP,
    leapfrog: int = LEAPFROG,
    seed: int = 0,
) -> LearningCoefficient:
    """Return the local learning coefficient at a point.

    Args:
        objective: L_n on fixed data; n is their number.
        x: the state w*, shape (P,), a minimum of L_n.
        gamma: precision of the Gaussian around the state that the chains are confined to. Default: 100.
        chains: number of chains, which all start at the state. Default: 4.
        draws: number of draws of each chain. Default: 500.
        warmup: number of draws before them, in which the step size is adapted. Default: 200.
        leapfrog: largest number of gradients for a draw; each takes 1 to this many. Default: 10.
        seed: of the chains.

    Raises:
        InputError: an option is out of range, ArviZ is missing, or the loss is not finite at the state.
    """
    if chains < 1:
        raise InputError(f"chains: expected 1 or more, found {chains}")
    options = {"gamma": gamma, "draws": draws, "warmup": warmup, "leapfrog": leapfrog}
    return combined(objective, x, [chain(objective, x, seed=seed + i, **options) for i in range(chains)])  # type: ignore[arg-type]


def chain(
    objective: Objective,
    x: Tensor,
    *,
    gamma: float = GAMMA,
    draws: int = DRAWS,
    warmup: int = WARMUP,
    leapfrog: int = LEAPFROG,
    seed: int = 0,
    advance: Callable[[], None] = lambda: None,
) -> Chain:
    """Return what one chain measures; see `learning_coefficient`.

    Args:
        objective: L_n on fixed data.
        x: the state w*, shape (P,).
        gamma: precision of the confining Gaussian.
        draws: number of draws.
        warmup: number of draws before them.
        leapfrog: largest number of gradients for a draw.
        seed: of the chain.
        advance: called after each draw, those of the warm-up included.

    Raises:
        InputError: an option is out of range, or the loss is not finite at the state.
    """
    for name, count, least in (("draws", draws, MIN_DRAWS), ("warmup", warmup, 1), ("leapfrog", leapfrog, 1)):
        if count < least:
            raise InputError(f"{name}: expected {least} or more, found {count}")
    if not 0 < gamma < math.inf:
        raise InputError(f"gamma: expected a number > 0, found {gamma}")
    x, scale = objective.vector(x), inverse_temperature(objective)

    def potential(w: Tensor) -> tuple[float, Tensor]:
        value, gradient = f.gradient(w)
        return scale * value + gamma / 2 * _squared(w - x), scale * gradient + gamma * (w - x)

    rows = np.empty((draws, 3))
    total, probabilities, size = torch.zeros_like(x, dtype=torch.float64), np.empty(draws), math.nan
    with fixed_statistics(objective, x) as f:
        if not math.isfinite(loss := f(x).loss):
            raise InputError(f"loss: expected a finite number at the given state, found {loss}")
        steps = hmc(potential, x, draws=draws, warmup=warmup, leapfrog=leapfrog, seed=seed)
        for i, draw in enumerate(steps, -warmup):
            advance()
            if i < 0:
                continue
            gap = draw.x - x
            squared = _squared(gap)
            loss = (draw.energy - gamma / 2 * squared) / scale
            rows[i] = loss, math.sqrt(squared), float((gap.double() * draw.gradient.double()).sum())
            total += draw.x
            probabilities[i], size = draw.probability, draw.step_size
    mean = (total / draws).cpu().numpy()
    losses, distances, virials = np.ascontiguousarray(rows.T)
    return Chain(losses, distances, virials, mean, float(probabilities.mean()), size)


def row_of(measured: Chain) -> NDArray[np.float64]:
    """Return a chain as a row of numbers, shape (3 draws + 2 + P,), see `chain_of`."""
    numbers = np.array([measured.acceptance, measured.step_size])
    return np.concatenate([measured.loss, measured.distance, measured.virial, numbers, measured.mean])


def chain_of(row: NDArray[np.float64], draws: int) -> Chain:
    """Return the chain of a row of numbers."""
    loss, distance, virial, rest = np.split(row, [draws, 2 * draws, 3 * draws])
    return Chain(loss, distance, virial, rest[2:], float(rest[0]), float(rest[1]))


def combined(objective: Objective, x: Tensor, chains: Sequence[Chain]) -> LearningCoefficient:
    """Return the estimate of chains that `chain` returned for a state."""
    mean = np.mean([each.mean for each in chains], axis=0)
    with fixed_statistics(objective, x) as f:
        loss, at_mean = f(f.vector(x)).loss, f(f.vector(mean)).loss
    return LearningCoefficient(
        loss=loss,
        at_mean=at_mean,
        inverse_temperature=inverse_temperature(objective),
        size=objective.size,
        losses=np.stack([each.loss for each in chains]),
        distances=np.stack([each.distance for each in chains]),
        virials=np.stack([each.virial for each in chains]),
        acceptance=np.array([each.acceptance for each in chains]),
        step_size=np.array([each.step_size for each in chains]),
    )


@contextmanager
def fixed_statistics(objective: Objective, x: Tensor) -> Iterator[Objective]:
    """Give the objective with BatchNorm's statistics fixed at those of a point, so that its gradients are exact."""
    with objective.at(x) as model:
        yield Objective(model, objective.batches, objective.loss, batch_norm="keep")


def inverse_temperature(objective: Objective) -> float:
    """Return n beta = n / log n.

    Raises:
        InputError: there is one sample only.
    """
    if objective.samples < 2:
        raise InputError(f"data: expected two samples or more, found {objective.samples}")
    return objective.samples / math.log(objective.samples)


def _squared(vector: Tensor) -> float:
    return float(vector.double().square().sum())
