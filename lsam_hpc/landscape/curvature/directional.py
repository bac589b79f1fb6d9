"""Directional sharpness: the curvature of the loss along a direction in which training moves."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.curvature.products import curvature
from lsam_hpc.landscape.objective import Objective


def directional_sharpness(
    objective: Objective, x: Tensor, directions: Tensor, matrix: str = "hessian", *, check: bool = True
) -> NDArray[np.float64]:
    """Return u'Hu / |u|^2 for each direction u, shape (n,); NaN where u is 0 or not finite.

    It lies between the smallest and the largest eigenvalue. After a step u the loss is f + g'u + |u|^2 / 2 times the
    directional sharpness, to second order.

    Args:
        objective: f on fixed data.
        x: the point, shape (P,).
        directions: shape (n, P); their lengths do not matter.
        matrix: `"hessian"` (default) or `"ggn"`.
        check: see `curvature`.

    Raises:
        InputError: sizes do not fit, or `curvature` raises it.

    Source: Pan and Li 2023, "Toward Understanding Why Adam Converges Faster Than SGD for Transformers" (arXiv
    2306.00204), for updates u of an optimizer.
    """
    if directions.ndim != 2 or directions.shape[1] != objective.size:
        raise InputError(f"directions: expected shape (n, {objective.size}), found {tuple(directions.shape)}")
    values = np.full(len(directions), np.nan)
    with curvature(objective, x, matrix, check=check) as operator:
        for i, direction in enumerate(directions):
            length = torch.linalg.vector_norm(direction)
            if 0 < length < torch.inf:
                unit = (direction / length).to(operator.device, operator.dtype)
                values[i] = float(unit @ (operator @ unit))
    return values
