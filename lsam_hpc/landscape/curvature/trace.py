"""Hutch++: the trace of a matrix, from matrix-vector products alone.

Source: Meyer, Musco, Musco and Woodruff 2021, "Hutch++: Optimal Stochastic Trace Estimation" (arXiv 2010.09649).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.curvature.products import Operator, curvature, dense, seeded
from lsam_hpc.landscape.curvature.results import Trace
from lsam_hpc.landscape.objective import Objective


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
    check_numbers(products, repeats)
    with curvature(objective, x, matrix, params, check=check) as operator:
        count = 1 if is_exact(operator.shape[0], products) else repeats
        return mean([estimate(operator, products, seed=seed, repeat=repeat) for repeat in range(count)])


def estimate(operator: Operator, products: int, *, seed: int = 0, repeat: int = 0) -> float:
    """Return one of the estimates of which `trace` is the mean; the exact trace of a matrix of at most `products` rows.

    Args:
        operator: the matrix.
        products: products with it, a multiple of 3.
        seed: of the random signs.
        repeat: number of the estimate; estimates are independent.
    """
    size = operator.shape[0]
    if is_exact(size, products):
        return float(dense(operator).trace())
    with seeded(seed, operator.device, repeat):
        signs = torch.randint(2, (2, size, products // 3), device=operator.device).to(operator.dtype) * 2 - 1
    basis, _ = torch.linalg.qr(operator @ signs[0])
    rest = signs[1] - basis @ (basis.T @ signs[1])
    inside = (basis * (operator @ basis)).sum()
    return float(inside + (rest * (operator @ rest)).sum() / (products // 3))


def mean(estimates: Sequence[float]) -> Trace:
    """Return the mean of independent estimates, with its standard error; one is exact."""
    error = float(np.std(estimates, ddof=1)) / len(estimates) ** 0.5 if len(estimates) > 1 else 0.0
    return Trace(float(np.mean(estimates)), error)


def is_exact(size: int, products: int) -> bool:
    """Return True if one estimate is the exact trace of a matrix of `size` rows."""
    return size <= products


def check_numbers(products: int, repeats: int) -> None:
    """Raise InputError if the numbers of products and estimates are out of range."""
    if products < 3 or products % 3:
        raise InputError(f"products: expected a multiple of 3, found {products}")
    if repeats < 2:
        raise InputError(f"repeats: expected 2 or more, found {repeats}")
