"""Loss between states: on straight lines, with barrier heights, and on a Bezier curve that avoids them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.workqueue import evaluate

if TYPE_CHECKING:
    from mpi4py import MPI

GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Profile:
    """Values on a path.

    Args:
        t: share of the way, from 0 to 1, shape (points,).
        loss: f at t, shape (points,).
        error: in %, NaN where targets are no classes.
    """

    t: NDArray[np.float64]
    loss: NDArray[np.float64]
    error: NDArray[np.float64]

    @property
    def barrier(self) -> float:
        """Height of the barrier, see `barrier`."""
        return barrier(self.t, self.loss)


@dataclass(frozen=True)
class Matrix:
    """Straight lines between all pairs of some states.

    Args:
        names: of the states.
        t: share of the way from the first to the second state of a pair, shape (points,).
        loss: shape (states, states, points): loss[i, j] from i to j.
        error: in %, the same shape.
    """

    names: tuple[str, ...]
    t: NDArray[np.float64]
    loss: NDArray[np.float64]
    error: NDArray[np.float64]

    @property
    def barriers(self) -> NDArray[np.float64]:
        """Heights of the barriers, shape (states, states); 0 on the diagonal."""
        return np.array([[barrier(self.t, loss) for loss in row] for row in self.loss])


def barrier(t: ArrayLike, loss: ArrayLike) -> float:
    """Return max over t of f(t) - ((1 - t) f(0) + t f(1)), never below 0, as t = 0 and 1 give 0.

    Args:
        t: share of the way, from 0 to 1, shape (points,).
        loss: f at t. A NaN makes the barrier NaN.

    Source: Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis", section 2, with the line
    between the ends in place of their mean.
    """
    at, f = np.asarray(t, np.float64), np.asarray(loss, np.float64)
    above = f - (f[0] + at * (f[-1] - f[0]))
    above[[0, -1]] = 0  # as they are but for rounding
    return float(above.max())


def line(
    objective: Objective,
    first: NDArray[Any] | Tensor,
    second: NDArray[Any] | Tensor,
    points: int = 25,
    folder: Path | None = None,
    options: Mapping[str, Any] | None = None,
    comm: MPI.Intracomm | None = None,
    title: str | None = None,
) -> Profile:
    """Return f on the straight line between two states; BatchNorm is recalibrated at each point by the objective.

    Args:
        objective: f.
        first: state at t = 0, shape (P,).
        second: at t = 1.
        points: number of values of t, 3 or more, the ends among them.
        folder: where finished points are kept, see `workqueue.evaluate`; with `options`, `comm` and `title` as there.
        options: what the values depend on.
        comm: the ranks that share the points. Default: this process alone.
        title: of the progress shown. Default: none is.
    """
    found = lines(objective, [first, second], ("0", "1"), points, folder, options, comm, title)
    return Profile(found.t, found.loss[0, 1], found.error[0, 1])


def lines(
    objective: Objective,
    states: Sequence[NDArray[Any] | Tensor],
    names: Sequence[str],
    points: int = 25,
    folder: Path | None = None,
    options: Mapping[str, Any] | None = None,
    comm: MPI.Intracomm | None = None,
    title: str | None = None,
) -> Matrix:
    """Return f on the straight lines between all pairs of states, each state evaluated once.

    Args:
        objective: f.
        states: two or more, shape (P,) each.
        names: of them.
        points: number of values of t, 3 or more; further arguments as in `line`.
        folder: see `line`.
        options: see `line`.
        comm: see `line`.
        title: see `line`.

    Raises:
        InputError: there are fewer than two states or three points.
    """
    if len(states) < 2:
        raise InputError(f"path: expected two states or more, found {len(states)}")
    if points < 3:
        raise InputError(f"points: expected 3 or more, found {points}")
    ends = [objective.vector(state) for state in states]
    t = np.linspace(0, 1, points)
    count = len(ends)
    tasks: list[tuple[int, int, int]] = [(i, i, 0) for i in range(count)]
    tasks += [(i, j, k) for i, j in itertools.combinations(range(count), 2) for k in range(1, points - 1)]

    def work(index: int) -> tuple[float, float]:
        i, j, k = tasks[index]
        return objective(torch.lerp(ends[i], ends[j], float(t[k])))

    found = evaluate(work, len(tasks), 2, folder, options, comm, title)
    values = np.empty((count, count, points, 2))
    for (i, j, k), value in zip(tasks, found, strict=True):
        if i == j:
            values[i, :, 0] = values[:, i, -1] = value
            values[i, i] = value
        else:
            values[i, j, k] = values[j, i, points - 1 - k] = value
    return Matrix(tuple(names), t, values[..., 0], values[..., 1])


def bezier(first: Tensor, middle: Tensor, second: Tensor, t: float) -> Tensor:
    """Return (1 - t)^2 first + 2 t (1 - t) middle + t^2 second."""
    return first * (1 - t) ** 2 + middle * (2 * t * (1 - t)) + second * t**2


def find_curve(
    objective: Objective,
    first: NDArray[Any] | Tensor,
    second: NDArray[Any] | Tensor,
    steps: int = 200,
    lr: float = 0.05,
    momentum: float = 0.9,
) -> Tensor:
    """Return the middle control point of a quadratic Bezier curve of low mean loss between two states, shape (P,).

    It starts on the middle of the straight line. A step goes down the gradient of f at one t, by the chain rule
    2 t (1 - t) grad f; the values of t are a golden-ratio sequence, which covers 0 to 1 evenly at any length, so that
    the result is the same each time. The learning rate falls to 0 as a cosine.

    Args:
        objective: f; its gradient takes BatchNorm's statistics at the point as constants.
        first: state at t = 0, shape (P,).
        second: at t = 1.
        steps: a gradient over all data each.
        lr: learning rate at first.
        momentum: of the steps.

    Raises:
        InputError: a number is out of its range, or the loss ceases to be finite.

    Source: Garipov et al. 2018, "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", section 3, eq. 2 to 4.
    """
    if steps < 1 or not 0 < lr < math.inf or not 0 <= momentum < 1:
        raise InputError(f"curve: expected steps >= 1, lr > 0 and momentum from 0 to below 1, found {steps}, {lr} and "
                         f"{momentum}")  # fmt: skip
    a, b = objective.vector(first), objective.vector(second)
    middle = torch.lerp(a, b, 0.5)
    velocity = torch.zeros_like(middle)
    for step in range(steps):
        t = (0.5 + step * GOLDEN) % 1
        loss, grad = objective.gradient(bezier(a, middle, b, t))
        if not math.isfinite(loss) or not bool(torch.isfinite(grad).all()):
            raise InputError(f"curve: expected a finite loss and gradient, found the loss {loss} at step {step}: "
                             "take a smaller learning rate")  # fmt: skip
        velocity.mul_(momentum).add_(grad, alpha=2 * t * (1 - t))
        middle -= lr * (1 + math.cos(math.pi * step / steps)) / 2 * velocity
    return middle


def curve(
    objective: Objective,
    first: NDArray[Any] | Tensor,
    middle: NDArray[Any] | Tensor,
    second: NDArray[Any] | Tensor,
    points: int = 25,
    folder: Path | None = None,
    options: Mapping[str, Any] | None = None,
    comm: MPI.Intracomm | None = None,
    title: str | None = None,
) -> Profile:
    """Return f on the Bezier curve of a middle control point; the arguments are those of `line`."""
    if points < 3:
        raise InputError(f"points: expected 3 or more, found {points}")
    a, control, b = (objective.vector(state) for state in (first, middle, second))
    t = np.linspace(0, 1, points)
    found = evaluate(
        lambda index: objective(bezier(a, control, b, float(t[index]))), points, 2, folder, options, comm, title
    )
    return Profile(t, found[:, 0], found[:, 1])
