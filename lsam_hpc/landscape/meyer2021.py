"""Hutch++: the trace of a matrix that is known by its products alone.

Source: Meyer, Musco, Musco and Woodruff 2021, "Hutch++: Optimal Stochastic Trace Estimation" (arXiv 2010.09649).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.curvature import curvature, dense, seeded
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.packages import package


class Trace(NamedTuple):
    """An estimate of a trace."""

    value: float
    error: float  # standard error of the value; 0: exact


def trace(
    objective: Objective,
    x: Tensor,
    matrix: str = "hessian",
    products: int = 30,
    repeats: int = 5,
    seed: int = 0,
    params: Sequence[int] | None = None,
    check: bool = True,
) -> Trace:
    """Return the trace of the Hessian or the Gauss-Newton matrix, with its standard error.

    With Q an orthonormal basis of A S, for random signs S, and random signs G:
    tr A = tr Q^T A Q + E [tr G^T (I - Q Q^T) A (I - Q Q^T) G / n], each of S, Q, G with n = products / 3 columns. The
    mean of `repeats` such estimates is returned. A matrix of at most `products` rows is summed up exactly.

    Args:
        objective: f on fixed data.
        x: the point, shape (P,).
        matrix: `"hessian"` (default) or `"ggn"`.
        products: with the matrix per estimate, a multiple of 3.
        repeats: estimates, 2 or more.
        seed: of the random signs.
        params: indices of parameters whose diagonal block is meant. Default: all.
        check: evaluate twice first, and refuse what is random.

    Raises:
        InputError: as `curvature`, or a number is out of range.
    """
    if products < 3 or products % 3:
        raise InputError(f"products: expected a multiple of 3, found {products}")
    if repeats < 2:
        raise InputError(f"repeats: expected 2 or more, found {repeats}")
    with curvature(objective, x, matrix, params, check) as operator, seeded(seed, objective.device):
        if operator.shape[0] <= products:
            return Trace(float(dense(operator).trace()), 0.0)
        found = torch.stack(
            [package("curvlinops", "trace").hutchpp_trace(operator, products).double().cpu() for _ in range(repeats)]
        )
    return Trace(float(found.mean()), float(found.std()) / math.sqrt(repeats))
