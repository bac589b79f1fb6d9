"""Losses on paths between states, and heights of the barriers on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROUNDING = 100  # rounding errors of a loss that are no barrier, in units of machine epsilon times max(1, |loss|)
DOUBLE = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Profile:
    """Values on a path.

    Args:
        t: position on the path, from 0 to 1, shape (points,).
        loss: f at t, shape (points,).
        error: classification error in %; NaN if targets are not classes.
        epsilon: machine epsilon of the type in which f was computed. Default: of float64.
    """

    t: NDArray[np.float64]
    loss: NDArray[np.float64]
    error: NDArray[np.float64]
    epsilon: float = DOUBLE

    @property
    def barrier(self) -> float:
        """Barrier height, see the function `barrier`."""
        return barrier(self.t, self.loss, self.epsilon)


@dataclass(frozen=True)
class Matrix:
    """Values on the straight lines between all pairs of states.

    Args:
        names: of the states.
        t: position from the first (0) to the second (1) state of a pair, shape (points,).
        loss: f, shape (states, states, points): loss[i, j] from state i to state j.
        error: classification error in %, the same shape.
        epsilon: machine epsilon of the type in which f was computed. Default: of float64.
    """

    names: tuple[str, ...]
    t: NDArray[np.float64]
    loss: NDArray[np.float64]
    error: NDArray[np.float64]
    epsilon: float = DOUBLE

    @property
    def barriers(self) -> NDArray[np.float64]:
        """Barrier heights, shape (states, states); 0 on the diagonal."""
        return np.array([[barrier(self.t, loss, self.epsilon) for loss in row] for row in self.loss])

    @property
    def highest(self) -> tuple[int, int] | None:
        """The two states with the highest barrier between them; None if no barrier is known to be above 0."""
        heights = np.triu(np.nan_to_num(self.barriers, nan=0.0), 1)
        i, j = np.unravel_index(int(heights.argmax()), heights.shape)
        return (int(i), int(j)) if heights[i, j] > 0 else None


def barrier(t: ArrayLike, loss: ArrayLike, epsilon: float = DOUBLE) -> float:
    """Return max over t of f(t) - ((1 - t) f(0) + t f(1)); it is at least 0, the value at t = 0 and 1.

    Args:
        t: position on the path, from 0 to 1, shape (points,).
        loss: f at t, shape (points,). If one is NaN, the barrier is NaN.
        epsilon: machine epsilon of the type in which f was computed. A barrier of up to `rounding(f(0), f(1), epsilon)`
            counts as 0. Default: of float64.

    Source: Frankle et al. 2020, "Linear Mode Connectivity and the Lottery Ticket Hypothesis", section 2, with the line
    between the end values in place of their mean.
    """
    at, f = np.asarray(t, np.float64), np.asarray(loss, np.float64)
    above = f - (f[0] + at * (f[-1] - f[0]))
    above[[0, -1]] = 0  # removes the rounding errors at the ends
    height = float(above.max())
    return 0.0 if height <= rounding(float(f[0]), float(f[-1]), epsilon) else height


def rounding(first: float, second: float, epsilon: float = DOUBLE) -> float:
    """Return the height of a barrier that rounding alone can make between two states with these losses.

    Logits of some ten have errors of some ten epsilon, whatever the loss is.
    """
    return ROUNDING * epsilon * max(1.0, abs(first), abs(second))
