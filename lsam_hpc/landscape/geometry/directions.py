"""Random directions in parameter space, and their normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError

Shapes = Sequence[tuple[str, Sequence[int]]]
Vector = NDArray[np.floating[Any]]
NORMALISATIONS = ("filter", "layer", "model", "none")
SMALL = ("keep", "ignore")  # treatment of biases and normalization parameters


def random_direction(layout: Shapes, seed: int, index: int = 0) -> NDArray[np.float32]:
    """Return independent standard normal numbers, shape (P,), the same on every machine.

    Args:
        layout: (name, shape) of each parameter.
        seed: common to a set of directions.
        index: number of the direction in the set. Default: 0.
    """
    size = sum(math.prod(shape) for _, shape in layout)
    return np.random.Generator(np.random.Philox([seed, index])).standard_normal(size, np.float32)


def normalised(direction: Vector, at: Vector, layout: Shapes, how: str = "filter", small: str = "ignore") -> Vector:
    """Return a direction scaled to a state, so that a step is the same relative change in all filters or layers.

    Args:
        direction: shape (P,).
        at: the state, shape (P,).
        layout: (name, shape) of each parameter.
        how: which parts get the norm that they have in the state: `"filter"` (default): each filter (first index of a
            parameter of two or more dimensions); `"layer"`: each parameter; `"model"`: the whole vector; `"none"`.
        small: values for parameters of one dimension or none (biases, normalization), unless `how` is model or none:
            `"ignore"` (default): 0, so that they do not move; `"keep"`: the state's values.

    Raises:
        InputError: an option is unknown, or a vector has the wrong size.

    Source: Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets", section 4; small parameters are treated as
    in the authors' program.
    """
    if how not in NORMALISATIONS:
        raise InputError(f"normalisation: expected one of {', '.join(NORMALISATIONS)}, found {how!r}")
    if small not in SMALL:
        raise InputError(f"small parameters: expected one of {', '.join(SMALL)}, found {small!r}")
    size = sum(math.prod(shape) for _, shape in layout)
    if direction.shape != (size,) or at.shape != (size,):
        raise InputError(f"direction: expected {size} elements, found shapes {direction.shape} and {at.shape}")
    if how == "none":
        return direction.copy()
    if how == "model":
        rescaled: Vector = direction * (np.linalg.norm(at) / np.linalg.norm(direction))
        return rescaled
    scaled = np.empty_like(direction)
    start = 0
    for _, shape in layout:
        part = slice(start, start := start + math.prod(shape))
        if len(shape) <= 1:
            scaled[part] = at[part] if small == "keep" else 0
            continue
        rows = shape[0] if how == "filter" else 1
        d, w = direction[part].reshape(rows, -1), at[part].reshape(rows, -1)
        # 1e-10, as in the authors' program, avoids a division by zero for a filter of zeros.
        scale = np.linalg.norm(w, axis=1) / (np.linalg.norm(d, axis=1) + 1e-10)
        scaled[part] = (d * scale[:, None]).reshape(-1)
    return scaled


def orthogonal(direction: Vector, to: Vector) -> Vector:
    """Return the part of a direction that is orthogonal to another, shape (P,).

    Raises:
        InputError: the two directions are parallel.
    """
    rest: Vector = direction - to * (np.dot(direction, to) / np.dot(to, to))
    if np.linalg.norm(rest) <= 1e-6 * np.linalg.norm(direction):
        raise InputError("directions: expected two that span a plane, found parallel ones")
    return rest
