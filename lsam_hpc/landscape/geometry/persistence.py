"""Basins of a surface: its minima, the saddles at which their basins merge, and how deep each one is.

Flood the surface to a level that rises: a basin is born at each minimum, and where two meet, at a saddle, the one with
the higher minimum ends. Its persistence is the value at the saddle minus that at its minimum: how far one must climb to
leave the basin for a deeper one. This is persistent homology of dimension 0 of the sublevel sets.

Points are neighbours along rows, columns and diagonals (8 neighbours). Points of equal value are taken in the order of
the array, so that a plateau without a lower neighbour is one minimum. A value that is not finite is a missing point: no
basin contains or crosses it.

Source: Edelsbrunner, Letscher and Zomorodian 2002, "Topological Persistence and Simplification".
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.geometry.barriers import rounding

Point = tuple[int, int]  # row and column


@dataclass(frozen=True)
class Basin:
    """A minimum of a surface, and where its basin merges with a deeper one.

    Args:
        minimum: row and column of its lowest point, the first one of a plateau.
        value: value there.
        saddle: row and column of the point at which it merges; None if it never does.
        level: value there; infinity if it never merges, as the deepest basin does not.
        into: index of the basin that it merges into; None if it never does.
        top: largest value of the points that are connected with it, at any level.
        border: whether the minimum is at the border of the grid or beside a missing point: there may be a lower one
            beyond.
    """

    minimum: Point
    value: float
    saddle: Point | None
    level: float
    into: int | None
    top: float
    border: bool

    @property
    def persistence(self) -> float:
        """Level of the saddle minus the value of the minimum; infinity without a saddle."""
        return self.level - self.value


def basins(values: NDArray[np.floating], least: float = 0.0, epsilon: float = 0.0) -> list[Basin]:
    """Return the basins of a surface, by falling persistence.

    A basin merges into one that is at least as deep, so no basin that is left out is `into` of one that is not.

    Args:
        values: shape (ny, nx); values that are not finite are missing points.
        least: leave out basins whose persistence is not above this. Default: 0, which leaves out none but the further
            points of a plateau.
        epsilon: machine epsilon of the type in which the values were computed: also leave out basins that rounding
            alone can make, of up to `barriers.rounding(value, level, epsilon)`. Default: 0, for exact values.

    Raises:
        InputError: the surface has not two dimensions, or no finite value.
    """
    if values.ndim != 2:
        raise InputError(f"surface: expected values on a plane, found shape {values.shape}")
    flat = values.astype(np.float64).reshape(-1)
    order = np.argsort(flat, kind="stable")
    order = order[np.isfinite(flat[order])]
    if not len(order):
        raise InputError("surface: expected finite values, found none")
    root = np.full(flat.size, -1)  # of each point's tree; -1: above the level
    merges: dict[int, tuple[int, int]] = {}  # minimum -> saddle, and the minimum that it merges into
    for point in order:
        around = {_root(root, other) for other in _neighbours(point, values.shape) if root[other] >= 0}
        # The root of a tree is its minimum, the first one of its level. The deepest basin goes on.
        minima = sorted(around, key=lambda minimum: (flat[minimum], minimum))
        root[point] = minima[0] if minima else point
        for minimum in minima[1:]:
            merges[minimum] = (int(point), minima[0])
            root[minimum] = minima[0]
    tops: dict[int, float] = {}
    for point in order:
        tops[_root(root, point)] = float(flat[point])  # in rising order, so the last one is the largest
    heights = dict.fromkeys(np.flatnonzero(root == np.arange(flat.size)).tolist(), math.inf)
    for minimum, (saddle, _) in merges.items():
        low, high = float(flat[minimum]), float(flat[saddle])
        if high - low > max(least, rounding(low, high, epsilon)):
            heights[minimum] = high - low
    kept = sorted(heights, key=lambda minimum: (-heights[minimum], flat[minimum], minimum))
    index = {minimum: i for i, minimum in enumerate(kept)}

    def basin(minimum: int) -> Basin:
        saddle, into = merges.get(minimum, (None, None))
        around = _neighbours(minimum, values.shape)
        return Basin(
            minimum=divmod(minimum, values.shape[1]),
            value=float(flat[minimum]),
            saddle=None if saddle is None else divmod(saddle, values.shape[1]),
            level=math.inf if saddle is None else float(flat[saddle]),
            into=None if into is None else index[into],
            top=tops[_root(root, minimum)],
            border=len(around) < 8 or not np.isfinite(flat[around]).all(),
        )

    return [basin(minimum) for minimum in kept]


def _root(root: NDArray[np.int64], point: int) -> int:
    """Return the root of a point's tree, and shorten the way to it."""
    while root[point] != point:
        root[point] = root[root[point]]
        point = root[point]
    return int(point)


def _neighbours(point: int, shape: tuple[int, ...]) -> list[int]:
    row, column = divmod(int(point), shape[1])
    return [
        i * shape[1] + j
        for i in range(max(row - 1, 0), min(row + 2, shape[0]))
        for j in range(max(column - 1, 0), min(column + 2, shape[1]))
        if (i, j) != (row, column)
    ]
