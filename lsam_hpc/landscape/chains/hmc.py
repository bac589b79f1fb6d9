"""Hamiltonian Monte Carlo: chains that sample exp(-U(x)) exactly, whatever their step size is.

A step draws a momentum p ~ N(0, I), follows the dynamics of U(x) + |p|^2 / 2 for a random number of leapfrog steps and
accepts where it arrives with the Metropolis probability, which corrects the error of the leapfrog steps. With one
leapfrog step it is MALA: Langevin's step with a correction. The warm-up adapts the step size to the target acceptance.

Source: Neal 2011, "MCMC using Hamiltonian dynamics"; Hoffman and Gelman 2014, "The No-U-Turn Sampler", algorithms 4
(first step size) and 5 (dual averaging).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

TARGET = 0.8  # mean probability of acceptance that the warm-up aims for
_DOUBLINGS = 100  # of the first step size, at most
_SHRINKAGE, _DELAY, _DECAY = 0.05, 10, 0.75  # gamma, t0 and kappa of dual averaging

Potential = Callable[[Tensor], tuple[float, Tensor]]  # x -> U, its gradient


class Draw(NamedTuple):
    """A state of a chain."""

    x: Tensor  # shape (P,)
    energy: float  # U(x)
    gradient: Tensor  # of U at x, shape (P,)
    probability: float  # with which the step that led here, or stayed here, was accepted
    step_size: float  # of the leapfrog steps


def hmc(potential: Potential, start: Tensor, *, draws: int, warmup: int, leapfrog: int, seed: int) -> Iterator[Draw]:
    """Yield the states of a chain, those of the warm-up first.

    Args:
        potential: returns U and its gradient at a point. A point where U is not finite is never accepted.
        start: first point, shape (P,); U must be finite there.
        draws: number of states after the warm-up.
        warmup: number of states at the beginning, in which the step size is adapted.
        leapfrog: largest number of leapfrog steps; each step takes 1 to this many.
        seed: of the chain.
    """
    generator = torch.Generator(start.device).manual_seed(seed)
    now = Draw(start, *potential(start), 1.0, 0.0)
    size = _first_step_size(potential, now, generator)
    center, error, average = math.log(10 * size), 0.0, 0.0
    for step in range(1, warmup + draws + 1):
        count = int(torch.randint(1, leapfrog + 1, (), generator=generator, device=start.device))
        now = _step(potential, now, size, count, generator)
        yield now
        if step <= warmup:
            weight = 1 / (step + _DELAY)
            error = (1 - weight) * error + weight * (TARGET - now.probability)
            logarithm = center - math.sqrt(step) / _SHRINKAGE * error
            average += step**-_DECAY * (logarithm - average)
            size = math.exp(logarithm if step < warmup else average)


def _step(potential: Potential, now: Draw, size: float, count: int, generator: torch.Generator) -> Draw:
    """Return the next state: where the leapfrog steps arrive, or the present one."""
    momentum = torch.randn(now.x.shape, generator=generator, device=now.x.device, dtype=now.x.dtype)
    uniform = float(torch.rand((), generator=generator, device=now.x.device, dtype=torch.float64))
    before = now.energy + _kinetic(momentum)
    x, energy, gradient = now.x, now.energy, now.gradient
    momentum = momentum - size / 2 * gradient
    for last in range(count - 1, -1, -1):
        x = x + size * momentum
        energy, gradient = potential(x)
        if not math.isfinite(energy):
            return now._replace(probability=0.0, step_size=size)
        momentum = momentum - (size if last else size / 2) * gradient
    change = energy + _kinetic(momentum) - before
    probability = math.exp(-max(change, 0.0)) if math.isfinite(change) else 0.0
    if uniform < probability:
        return Draw(x, energy, gradient, probability, size)
    return now._replace(probability=probability, step_size=size)


def _first_step_size(potential: Potential, start: Draw, generator: torch.Generator) -> float:
    """Return a step size at which one leapfrog step is accepted with a probability of about one half."""
    size, factor = 1.0, 0.0
    for _ in range(_DOUBLINGS):
        likely = _step(potential, start, size, 1, generator).probability > 0.5
        factor = factor or (2.0 if likely else 0.5)
        if likely != (factor > 1):
            break
        size *= factor
    return size


def _kinetic(momentum: Tensor) -> float:
    return float(momentum.double().square().sum()) / 2
