"""The solution that the gradient flow dx/dt = -grad f(x) reaches from a point, and its sharpness.

The flow is stiff: its slowest direction sets its time, and its sharpest one the step of a usual explicit method. The
method of Runge, Kutta and Chebyshev with s stages is stable up to steps of about 0.65 s^2 / sharpness.

Sources: Kreisler, Nacson, Soudry and Carmon 2023, "Gradient Descent Monotonically Decreases the Sharpness of Gradient
Flow Solutions in Scalar Networks and Beyond" (arXiv 2305.13064); Sommeijer, Shampine and Verwer 1998, "RKC: an explicit
solver for parabolic PDEs", for the integrator, its error estimate and its number of stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.curvature.products import curvature, seeded
from lsam_hpc.landscape.curvature.spectral_density import lanczos
from lsam_hpc.landscape.curvature.spectrum import eigenpairs
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.optim.batchnorm import layers

GRADIENTS = 20_000
TOLERANCE = 1e-3  # error of a step, and remaining path of the solution / length of the parameters
_SETTLED = 10.0  # shortest time after the arrival * decay rate of the gradient
_RESOLVED = 2.0  # longest step * decay rate of the gradient
_STAGES = 1000  # most of them
_LONGEST = 1e150  # step, above which the flow is on its way to infinity
_REFRESH = 10  # steps between estimates of the sharpness
_LANCZOS, _SAFETY = 20, 1.1  # steps of an estimate, and the factor on it

Progress = Callable[[int, float], None]


class Flow(NamedTuple):
    """Where the gradient flow from a point has come to.

    Attributes:
        x: the last point, shape (P,).
        converged: the last point is the flow's solution.
        sharpness: largest eigenvalue of the Hessian at the solution; NaN if not converged.
        remaining: estimated length of the path to the solution, in units of the parameters; inf if unknown.
        gradients: number of evaluations of the gradient and of products with the Hessian.
        times: of the steps, from 0, in units of 1 / eigenvalue, shape (steps,).
        losses: f at these times, shape (steps,).
        norms: |grad f| at these times, shape (steps,).
    """

    x: Tensor
    converged: bool
    sharpness: float
    remaining: float
    gradients: int
    times: NDArray[np.float64]
    losses: NDArray[np.float64]
    norms: NDArray[np.float64]


def gradient_flow(
    objective: Objective,
    x: Tensor,
    *,
    gradients: int = GRADIENTS,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    progress: Progress | None = None,
) -> Flow:
    """Integrate the gradient flow until the loss no longer falls, and return the solution with its sharpness.

    The remaining path is estimated as |g| / r, where r = g'Hg / |g|^2 is the gradient's decay rate, which tends to that
    of the slowest direction. The flow has converged if the remaining path was at most `tolerance` times the length of
    the parameters during the whole second half of its time, and for at least 10 / r. A loss whose infimum lies at
    infinity, as cross-entropy of classes that the model separates, has no solution, and the flow does not converge.

    Args:
        objective: f on fixed data, in float64, without running statistics.
        x: the start, shape (P,).
        gradients: most evaluations of the gradient and products with the Hessian. Default: 20,000.
        tolerance: largest estimated error of a step, and largest remaining path of a solution, both divided by the
            length of the parameters (the larger one of that at the start and here). Default: 1e-3.
        seed: of the start vectors for eigenvalues.
        progress: called after each step with the number of evaluations and the loss.

    Raises:
        InputError: the objective is not of this kind, or `curvature` raises it.
    """
    check_flow(objective, gradients, tolerance)
    with curvature(objective, x):  # checks the model
        pass
    flow = _Integrator(objective, x, gradients, tolerance, seed)
    rows, arrival, converged = [], math.inf, False
    while True:
        rows.append((flow.time, flow.loss, flow.norm))
        if progress:
            progress(flow.used, flow.loss)
        scale = max(flow.length, _norm(flow.x))
        arrival = min(arrival, flow.time) if flow.remaining <= tolerance * scale else math.inf
        if flow.norm == 0:  # a stationary point, or an underflow on the way to infinity, where rate * time is about 1
            converged = flow.time == 0 or flow.time * flow.rate >= _SETTLED
            break
        converged = flow.time >= 2 * arrival and (flow.time - arrival) * flow.rate >= _SETTLED
        if converged or not flow.step():
            break
    sharpness = float(eigenpairs(objective, flow.x, 1, seed=seed, check=False)[0][0]) if converged else math.nan
    return Flow(flow.x, converged, sharpness, flow.remaining, flow.used, *np.array(rows, np.float64).T)


def check_flow(objective: Objective, gradients: int, tolerance: float) -> None:
    """Raise InputError if the flow of an objective is not defined, or a number is out of range; see `gradient_flow`."""
    if objective.dtype != torch.float64:
        raise InputError(f"gradient flow: expected a model in float64, found {objective.dtype}")
    if statistics := layers(objective.model):
        raise InputError(
            f"gradient flow: expected a model without running statistics, found {type(statistics[0]).__name__}: "
            "they would change along the flow, which then is not that of a loss"
        )
    if gradients < 1:
        raise InputError(f"gradient flow: expected 1 gradient or more, found {gradients}")
    if not 0 < tolerance < 1:
        raise InputError(f"gradient flow: expected a tolerance between 0 and 1, found {tolerance}")


class _Integrator:
    """A point of the flow, with what is known there, and the size of the next step."""

    def __init__(self, objective: Objective, x: Tensor, budget: int, tolerance: float, seed: int) -> None:
        self._objective, self._budget, self._tolerance, self._seed = objective, budget, tolerance, seed
        self.used, self._steps, self.time = 0, 0, 0.0
        self.x = objective.vector(x).clone()
        self.length = _norm(self.x)
        self.loss, self._gradient = self._evaluate(self.x)
        self.norm = _norm(self._gradient)
        self.rate = self._radius = 0.0
        self._look(refresh=True)
        self._h = 0.25 / self._radius

    @property
    def remaining(self) -> float:
        """Estimated length of the path to the solution."""
        return self.norm / self.rate if self.rate > 0 else math.inf if self.norm else 0.0

    def step(self) -> bool:
        """Take one step; return False if the budget does not suffice for it, or the time is about to overflow."""
        while True:
            if self.rate > 0:
                self._h = min(self._h, _RESOLVED / self.rate)
            if self._h > _LONGEST:
                return False
            stages = min(1 + math.ceil(math.sqrt(1 + 1.54 * self._h * self._radius)), _STAGES)
            self._h = min(self._h, (stages**2 - 1) / 1.54 / self._radius)
            if self.used + stages + 3 > self._budget:
                return False
            y, loss, gradient = self._attempt(self._h, stages)
            scale = max(self.length, _norm(self.x), _norm(y))
            error = _norm(0.8 * (self.x - y) - 0.4 * self._h * (self._gradient + gradient)) / (self._tolerance * scale)
            grow = 0.8 * max(error, 1e-3) ** (-1 / 3) if math.isfinite(error) else 0.1
            if error <= 1:
                break
            self._h *= max(grow, 0.1)  # the error is larger, or NaN
            self._look(refresh=True)
        self.time += self._h
        self._h *= min(grow, 5.0)
        self.x, self.loss, self._gradient, self.norm = y, loss, gradient, _norm(gradient)
        self._steps += 1
        self._look(refresh=self._steps % _REFRESH == 0)
        return True

    def _attempt(self, h: float, stages: int) -> tuple[Tensor, float, Tensor]:
        """Return the point after a step of length h, with loss and gradient there."""
        weights = _coefficients(stages)
        before, now = self.x, self.x - weights[0][2] * h * self._gradient
        for mu, nu, own, first in weights[1:]:
            _, gradient = self._evaluate(now)
            after = (1 - mu - nu) * self.x + mu * now + nu * before - h * (own * gradient + first * self._gradient)
            before, now = now, after
        return now, *self._evaluate(now)

    def _evaluate(self, x: Tensor) -> tuple[float, Tensor]:
        self.used += 1
        return self._objective.gradient(x)

    def _look(self, *, refresh: bool) -> None:
        """Find the gradient's decay rate and, to refresh it, a bound of the eigenvalues."""
        if not (refresh or self.norm):
            return
        with curvature(self._objective, self.x, check=False) as operator:
            if self.norm:
                unit = self._gradient / self.norm
                self.rate = float(unit @ (operator @ unit))
                self.used += 3  # the product, and the graph for it
            if refresh:
                with seeded(self._seed, operator.device):
                    start = torch.randn(len(self.x), dtype=operator.dtype, device=operator.device)
                nodes, _ = lanczos(operator, start / _norm(start), _LANCZOS)
                self.used += len(nodes)
                self._radius = _SAFETY * float(np.abs(nodes).max()) or 1.0


def _coefficients(stages: int) -> list[tuple[float, float, float, float]]:
    """Return mu, nu, mu~ and gamma~ of each stage; of the first stage only mu~ counts."""
    w0 = 1 + 2 / 13 / stages**2
    t, dt, ddt = [1.0, w0], [0.0, 1.0], [0.0, 0.0]  # Chebyshev polynomials at w0, and their derivatives
    for j in range(2, stages + 1):
        t.append(2 * w0 * t[j - 1] - t[j - 2])
        dt.append(2 * t[j - 1] + 2 * w0 * dt[j - 1] - dt[j - 2])
        ddt.append(4 * dt[j - 1] + 2 * w0 * ddt[j - 1] - ddt[j - 2])
    w1 = dt[stages] / ddt[stages]
    b = [0.0, 0.0, *(ddt[j] / dt[j] ** 2 for j in range(2, stages + 1))]
    b[0], b[1] = b[2], 1 / w0
    weights = [(0.0, 0.0, b[1] * w1, 0.0)]
    for j in range(2, stages + 1):
        own = 2 * b[j] * w1 / b[j - 1]
        weights.append((2 * b[j] * w0 / b[j - 1], -b[j] / b[j - 2], own, -(1 - b[j - 1] * t[j - 1]) * own))
    return weights


def _norm(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x))
