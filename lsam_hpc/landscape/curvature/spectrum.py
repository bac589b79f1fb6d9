"""The largest or smallest eigenvalues of an objective's Hessian or Gauss-Newton matrix, and their eigenvectors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.curvature.lanczos import Extremes, lanczos_extremes, room
from lsam_hpc.landscape.curvature.products import Operator, curvature, dense
from lsam_hpc.landscape.curvature.spectral_density import random_start
from lsam_hpc.landscape.objective import Objective

SMALL = 64  # largest number of parameters for which the dense matrix is decomposed
ENDS = ("largest", "smallest")
TOLERANCE = {4: 1e-5, 8: 1e-10}  # |A v - w v| / |w|, by the bytes of a number; float32 products are no more accurate
LOW = 1e-5  # the same for the smallest eigenvalues, in units of the largest |w|


def eigenpairs(
    objective: Objective,
    x: Tensor,
    k: int,
    matrix: str = "hessian",
    *,
    end: str = "largest",
    seed: int = 0,
    params: Sequence[int] | None = None,
    check: bool = True,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the k largest eigenvalues, descending, shape (k,), and their vectors of length 1, shape (k, P).

    Or the k smallest, ascending: the most negative ones, to 1e-5 of the largest |w|, far better if they are isolated.
    By Lanczos, see `lanczos_extremes`. The sign of a vector is such that its largest element is positive.

    Args:
        objective: f on fixed data.
        x: the point, shape (P,).
        k: number of eigenvalues, 1 to P.
        matrix: `"hessian"` (default) or `"ggn"`.
        end: `"largest"` (default) or `"smallest"`.
        seed: of the start vector.
        params: indices of parameters, see `products.layers`: take their diagonal block, and P is the block's size.
            Default: the whole matrix.
        check: see `curvature`.

    Raises:
        InputError: k is not in 1 to P, the iteration does not converge, or `curvature` raises it.
    """
    if end not in ENDS:
        raise InputError(f"end: expected one of {', '.join(ENDS)}, found {end!r}")
    with curvature(objective, x, matrix, params, check=check) as operator:
        size = operator.shape[0]
        if not 1 <= k <= size:
            raise InputError(f"eigenvalues: expected 1 to {size}, found {k}")
        if end == "largest":
            return extremes(operator, k, seed=seed)[:2]
        return extremes(operator, 0, k, seed=seed)[2:4]


def extremes(operator: Operator, largest: int, smallest: int = 0, *, seed: int = 0, steps: int = 0) -> Extremes:
    """Return the largest and the smallest eigenvalues with their vectors, see `eigenpairs`.

    Args:
        operator: the matrix.
        largest: how many, 0 to P.
        smallest: how many, 0 to P.
        seed: of the start vector.
        steps: also return the quadrature of `density` from its first random vector, with reorthogonalisation; see
            `shares_quadrature`. Default: 0, none.
    """
    if _is_dense(operator.shape[0], largest + smallest):
        values, columns = np.linalg.eigh(_symmetric(dense(operator).double().cpu().numpy()))
        top = values[::-1][:largest], columns.T[::-1][:largest]
        ends = Extremes(*top, values[:smallest], columns.T[:smallest], None)
    else:
        steps *= shares_quadrature(operator.shape[0], operator.dtype, largest + smallest, steps)
        start, tolerance = random_start(operator, seed), (TOLERANCE[operator.dtype.itemsize], LOW)
        ends = lanczos_extremes(operator, start, largest, smallest, tolerance=tolerance, steps=steps)
    return ends._replace(vectors=_signed(ends.vectors), low_vectors=_signed(ends.low_vectors))


def shares_quadrature(size: int, dtype: torch.dtype, wanted: int, steps: int) -> bool:
    """Return True if `extremes` returns the quadrature too: with `steps` vectors in memory, no dense decomposition."""
    return not _is_dense(size, wanted) and steps <= room(size, dtype, wanted)


def _is_dense(size: int, wanted: int) -> bool:
    return size <= SMALL or 2 * wanted >= size


def _signed(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    largest = vectors[np.arange(len(vectors)), np.abs(vectors).argmax(1)]
    signed: NDArray[np.float64] = vectors * np.sign(largest)[:, None]
    return signed


def _symmetric(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    half: NDArray[np.float64] = (matrix + matrix.T) / 2
    return half
