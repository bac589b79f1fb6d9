"""Lines and planes in parameter space: through given states, or along directions from one state."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.geometry.directions import Shapes, normalised, orthogonal, random_direction

Vector = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Axes:
    """A line or a plane in parameter space.

    Args:
        origin: the state with coordinates 0, shape (P,).
        directions: shape (1, P) or (2, P).
        labels: of the axes, with units.
        marks: coordinates of states on the line or plane, by name, shape (1,) or (2,) each.
        explained: share of the variance that each direction explains; None unless they are principal components.
    """

    origin: Vector
    directions: Vector
    labels: tuple[str, ...]
    marks: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    explained: NDArray[np.float64] | None = None

    def coordinates(self, states: Vector) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the coordinates of states and their distances from the line or plane; directions must be orthogonal.

        Args:
            states: shape (n, P).

        Returns:
            Coordinates, shape (n, 1) or (n, 2), and distances from the line or plane, shape (n,).
        """
        offsets = np.asarray(states, np.float64) - self.origin
        along = np.asarray(self.directions, np.float64)
        coordinates = offsets @ along.T / (along**2).sum(1)
        return coordinates, np.linalg.norm(offsets - coordinates @ along, axis=1)

    def point(self, coordinates: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the state at given coordinates, shape (P,)."""
        state: NDArray[np.float64] = self.origin + np.asarray(coordinates, np.float64) @ self.directions
        return state


def random_axes(
    origin: Vector, layout: Shapes, count: int = 2, seed: int = 0, *, how: str = "filter", small: str = "ignore"
) -> Axes:
    """Return axes along random directions from a state, see `directions.normalised`.

    Args:
        origin: the state, shape (P,).
        layout: (name, shape) of each parameter.
        count: 1 or 2.
        seed: of the directions.
        how: normalisation of the directions. Default: filter.
        small: treatment of biases and normalization parameters. Default: ignore.
    """
    drawn = [random_direction(layout, seed, index) for index in range(count)]
    return directed(origin, drawn, layout, how=how, small=small, name="random direction")


def directed(
    origin: Vector, directions: Sequence[Vector] | Vector, layout: Shapes, *, how: str, small: str, name: str
) -> Axes:
    """Return axes along given directions from a state, normalised; for the arguments see `random_axes`."""
    along = np.stack([normalised(direction, origin, layout, how, small) for direction in directions])
    unit = {"none": "distance", "model": "in norms of the model"}.get(how, f"in norms of each {how}")
    labels = tuple(f"{name} {i + 1} ({unit})" for i in range(len(along)))
    return Axes(origin, along, labels)


def line(first: Vector, second: Vector, names: tuple[str, str]) -> Axes:
    """Return the line from one state (0) to another (1).

    Raises:
        InputError: the states are equal, or of different sizes.
    """
    check_states((first, second), names)
    along = (np.asarray(second, np.float64) - first)[None]
    length = float(np.linalg.norm(along))
    marks = {names[0]: np.zeros(1), names[1]: np.ones(1)}
    return Axes(first, along, (f"share of the way from {names[0]} to {names[1]} (distance {length:.3g})",), marks)


def through(states: Sequence[Vector], names: Sequence[str]) -> Axes:
    """Return the plane through three states: orthogonal axes of length 1, the first from state 0 to state 1.

    Raises:
        InputError: the states lie on a line, or are of different sizes.

    Source: Garipov et al. 2018, "Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs", section 4.
    """
    check_states(states, names)
    if len(states) != 3:
        raise InputError(f"plane: expected three states, found {len(states)}")
    origin = np.asarray(states[0], np.float64)
    u = np.asarray(states[1], np.float64) - origin
    v = orthogonal(np.asarray(states[2], np.float64) - origin, u)
    u, v = u / np.linalg.norm(u), v / np.linalg.norm(v)
    directions = np.stack([u, v])
    at, _ = Axes(origin, directions, ("", "")).coordinates(np.stack(list(states)))
    labels = (f"towards {names[1]} (distance)", f"towards {names[2]}, orthogonal to it (distance)")
    return Axes(origin, directions, labels, dict(zip(names, at, strict=True)))


def ranges(at: NDArray[np.float64], points: int, margin: float = 0.25, least: float = 0.7) -> list[NDArray[np.float64]]:
    """Return, for each axis, evenly spaced coordinates that cover some points with a margin around them.

    Args:
        at: shape (n, axes).
        points: number of coordinates along each axis.
        margin: margin at each end, as a share of the points' extent along the axis. Default: 0.25.
        least: smallest range, as a share of the largest range. Default: 0.7.
    """
    low, high = at.min(0), at.max(0)
    middle, extent = (low + high) / 2, (1 + 2 * margin) * (high - low)
    extent = np.maximum(extent, least * (float(extent.max()) or 1.0))
    return [np.linspace(m - e / 2, m + e / 2, points) for m, e in zip(middle, extent, strict=True)]


def check_states(states: Sequence[Vector], names: Sequence[str]) -> None:
    """Raise InputError unless all states are finite, of the same size, and different from each other."""
    for state, name in zip(states, names, strict=True):
        if state.shape != states[0].shape:
            raise InputError(f"{name}: expected {states[0].size} parameters, found {state.size}")
        if not np.isfinite(state).all():
            raise InputError(f"{name}: expected a finite state, found one with NaN or infinite parameters")
    for i, j in itertools.combinations(range(len(states)), 2):
        if math.isclose(float(np.linalg.norm(np.subtract(states[i], states[j], dtype=np.float64))), 0.0):
            raise InputError(f"{names[j]}: expected another state than {names[i]}, found the same parameters")
