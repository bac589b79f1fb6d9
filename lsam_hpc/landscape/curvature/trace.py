"""Hutch++: the trace of a matrix, from matrix-vector products alone.

Source: Meyer, Musco, Musco and Woodruff 2021, "Hutch++: Optimal Stochastic Trace Estimation" (arXiv 2010.09649).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.curvature.products import curvature, dense, seeded
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.packages import package


class Trace(NamedTuple):
    """An estimate of a trace."""

    value: float
    error: float  # standard error of the value; 0 if exact


def trace(
    objective: Objective,
    x: Tensor,
    matrix: str = "hessian",
    *,
    products: int = 30,
    repeats: int = 5,
    seed: int = 0,
    params: Sequence[int] | None = None,
    check: bool = True,
) -> Trace:
    """Return the trace of the Hessian or the Gauss-Newton matrix, with its standard error.

    With Q an orthonormal basis of A S, for random signs S, and random signs G:
    tr A = tr Q^T A Q + E [tr G^T (I - Q Q^T) A (I - Q Q^T) G / n], where S, Q and G have n = products / 3 columns each.
    The value is the mean of `repeats` such estimates. For a matrix of at most `products` rows it is exact.

    Args:
        objective: f on fixed data.
        x: the point, shape (P,).
        matrix: `"hessian"` (default) or `"ggn"`.
        products: products with the matrix per estimate, a multiple of 3. Default: 30.
        repeats: number of estimates, 2 or more. Default: 5.
        seed: of the random signs.
        params: indices of parameters: take their diagonal block. Default: the whole matrix.
        check: see `curvature`.

    Raises:
        InputError: a number is out of range, or `curvature` raises it.
    """
    if products < 3 or products % 3:
        raise InputError(f"products: expected a multiple of 3, found {products}")
    if repeats < 2:
        raise InputError(f"repeats: expected 2 or more, found {repeats}")
    with curvature(objective, x, matrix, params, check=check) as operator, seeded(seed, objective.device):
        if operator.shape[0] <= products:
            return Trace(float(dense(operator).trace()), 0.0)
        estimates = torch.stack(
            [package("curvlinops", "trace").hutchpp_trace(operator, products).double().cpu() for _ in range(repeats)]
        )
    return Trace(float(estimates.mean()), float(estimates.std()) / math.sqrt(repeats))
