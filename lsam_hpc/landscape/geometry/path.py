"""Loss between states: on straight lines, with barrier heights, and on Bezier curves of low loss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.geometry.barriers import DOUBLE, Matrix, Profile, barrier, rounding
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.workqueue import evaluate

if TYPE_CHECKING:
    from mpi4py import MPI

__all__ = ["DOUBLE", "Matrix", "Profile", "barrier", "curve", "find_curve", "line", "lines", "rounding"]
GOLDEN = (math.sqrt(5) - 1) / 2


def line(
    objective: Objective,
    first: NDArray[Any] | Tensor,
    second: NDArray[Any] | Tensor,
    points: int = 25,
    *,
    folder: Path | None = None,
    options: Mapping[str, Any] | None = None,
    comm: MPI.Intracomm | None = None,
    title: str | None = None,
) -> Profile:
    """Return f on the straight line between two states; the objective recalibrates BatchNorm at each point.

    Args:
        objective: f.
        first: state at t = 0, shape (P,).
        second: at t = 1.
        points: number of values of t, 3 or more, with both ends. Default: 25.
        folder: see `workqueue.evaluate`, also for the arguments that follow.
        options: see there.
        comm: see there.
        title: see there.
    """
    matrix = lines(
        objective, [first, second], ("0", "1"), points, folder=folder, options=options, comm=comm, title=title
    )
    return Profile(matrix.t, matrix.loss[0, 1], matrix.error[0, 1], matrix.epsilon)


def lines(
    objective: Objective,
    states: Sequence[NDArray[Any] | Tensor],
    names: Sequence[str],
    points: int = 25,
    *,
    folder: Path | None = None,
    options: Mapping[str, Any] | None = None,
    comm: MPI.Intracomm | None = None,
    title: str | None = None,
) -> Matrix:
    """Return f on the straight lines between all pairs of states; each state is evaluated once.

    Args:
        objective: f.
        states: two or more, shape (P,) each.
        names: of the states.
        points: number of values of t, 3 or more, with both ends. Default: 25.
        folder: see `workqueue.evaluate`, also for the arguments that follow.
        options: see there.
        comm: see there.
        title: see there.

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

    results = evaluate(work, len(tasks), 2, folder, options, comm=comm, title=title)
    values = np.empty((count, count, points, 2))
    for (i, j, k), value in zip(tasks, results, strict=True):
        if i == j:
            values[i, :, 0] = values[:, i, -1] = value
            values[i, i] = value
        else:
            values[i, j, k] = values[j, i, points - 1 - k] = value
    return Matrix(tuple(names), t, values[..., 0], values[..., 1], torch.finfo(objective.dtype).eps)


def bezier(first: Tensor, middle: Tensor, second: Tensor, t: float) -> Tensor:
    """Return (1 - t)^2 first + 2 t (1 - t) middle + t^2 second."""
    return first * (1 - t) ** 2 + middle * (2 * t * (1 - t)) + second * t**2


def find_curve(
    objective: Objective,
    first: NDArray[Any] | Tensor,
    second: NDArray[Any] | Tensor,
    steps: int = 200,
    lr: float = 0.05,
    *,
    momentum: float = 0.9,
) -> Tensor:
    """Return the middle control point of a quadratic Bezier curve of low mean loss between two states, shape (P,).

    The search starts at the middle of the straight line. Each step follows the gradient of f at one t, which is
    2 t (1 - t) grad f by the chain rule. The values of t are a golden-ratio sequence, which covers 0 to 1 evenly at any
    length and makes the result reproducible. The learning rate falls to 0 along a cosine.

    Args:
        objective: f; its gradient treats BatchNorm's statistics at the point as constants.
        first: state at t = 0, shape (P,).
        second: at t = 1.
        steps: number of steps, each with one gradient over all data. Default: 200.
        lr: initial learning rate. Default: 0.05.
        momentum: heavy-ball momentum. Default: 0.9.

    Raises:
        InputError: a number is out of range, or the loss or its gradient becomes infinite or NaN.

    Source: Garipov et al. 2018, "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", section 3, eq. 2 to 4.
    """
    if steps < 1 or not 0 < lr < math.inf or not 0 <= momentum < 1:
        raise InputError(
            f"curve: expected steps >= 1, lr > 0 and momentum from 0 to below 1, found {steps}, {lr} and {momentum}"
        )
    a, b = objective.vector(first), objective.vector(second)
    middle = torch.lerp(a, b, 0.5)
    velocity = torch.zeros_like(middle)
    for step in range(steps):
        t = (0.5 + step * GOLDEN) % 1
        loss, grad = objective.gradient(bezier(a, middle, b, t))
        if not math.isfinite(loss) or not bool(torch.isfinite(grad).all()):
            raise InputError(
                f"curve: expected a finite loss and gradient, found the loss {loss} at step {step}: "
                "use a smaller learning rate"
            )
        velocity.mul_(momentum).add_(grad, alpha=2 * t * (1 - t))
        middle -= lr * (1 + math.cos(math.pi * step / steps)) / 2 * velocity
    return middle


def curve(
    objective: Objective,
    first: NDArray[Any] | Tensor,
    middle: NDArray[Any] | Tensor,
    second: NDArray[Any] | Tensor,
    points: int = 25,
    *,
    folder: Path | None = None,
    options: Mapping[str, Any] | None = None,
    comm: MPI.Intracomm | None = None,
    title: str | None = None,
) -> Profile:
    """Return f on the Bezier curve with a given middle control point; for the other arguments see `line`."""
    if points < 3:
        raise InputError(f"points: expected 3 or more, found {points}")
    a, control, b = (objective.vector(state) for state in (first, middle, second))
    t = np.linspace(0, 1, points)

    def work(index: int) -> tuple[float, float]:
        return objective(bezier(a, control, b, float(t[index])))

    values = evaluate(work, points, 2, folder, options, comm=comm, title=title)
    return Profile(t, values[:, 0], values[:, 1], torch.finfo(objective.dtype).eps)
