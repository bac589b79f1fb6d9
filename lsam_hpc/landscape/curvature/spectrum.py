"""The largest or smallest eigenvalues of an objective's Hessian or Gauss-Newton matrix, and their eigenvectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.curvature.products import Operator, curvature, dense
from lsam_hpc.landscape.curvature.spectral_density import lanczos
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.packages import package

SMALL = 64  # largest number of parameters for which the dense matrix is decomposed
ENDS = ("largest", "smallest")
_STEPS = 20  # of Lanczos, for the scale of the eigenvalues
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}  # |A v - w v| / |w|; float32 products are no more accurate


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
    By Lanczos with implicit restarts (scipy's eigsh), with 2 k + 1 vectors, at least 20, in memory. The sign of a
    vector is such that its largest element is positive.

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

    Source: Lehoucq, Sorensen and Yang 1998, "ARPACK Users' Guide".
    """
    linalg = package("scipy.sparse.linalg", "spectrum")
    if end not in ENDS:
        raise InputError(f"end: expected one of {', '.join(ENDS)}, found {end!r}")
    sign = 1 if end == "largest" else -1
    with curvature(objective, x, matrix, params, check=check) as operator:
        size = operator.shape[0]
        if not 1 <= k <= size:
            raise InputError(f"eigenvalues: expected 1 to {size}, found {k}")
        if size <= SMALL or k >= size // 2:
            values, columns = np.linalg.eigh(_symmetric(dense(operator).double().cpu().numpy()))
        else:
            dtype = np.dtype(str(operator.dtype).removeprefix("torch."))
            start = np.random.default_rng(seed).standard_normal(size).astype(dtype)
            try:
                # The tolerance is relative to the eigenvalue, and the smallest may be 0: take those of scale - A.
                scale = 0.0 if end == "largest" else _scale(operator, start)
                tolerance = max(TOLERANCE[dtype.name], 0.0 if end == "largest" else TOLERANCE["float32"])
                linear = linalg.LinearOperator(operator.shape, matvec=_in_numpy(operator, scale, sign), dtype=dtype)
                values, columns = linalg.eigsh(linear, k, which="LA", v0=start, tol=tolerance)
                values = sign * (values - scale)
            except linalg.ArpackNoConvergence as error:
                raise InputError(
                    f"eigenvalues: expected {k} that converge, found {len(error.eigenvalues)}: "
                    "compute fewer, or use float64 (--double)"
                ) from error
    order = np.argsort(-sign * values)[:k]
    values, vectors = values[order].astype(np.float64), columns.T[order].astype(np.float64)
    return values, vectors * np.sign(vectors[np.arange(k), np.abs(vectors).argmax(1)])[:, None]


def _scale(operator: Operator, start: NDArray[Any]) -> float:
    """Return about the largest absolute eigenvalue."""
    first = torch.tensor(start / np.linalg.norm(start)).to(operator.device)
    return float(np.abs(lanczos(operator, first, _STEPS)[0]).max()) or 1.0


def _in_numpy(operator: Operator, scale: float, sign: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return v -> scale v + sign A v."""

    def product(v: NDArray[Any]) -> NDArray[Any]:
        flat = torch.tensor(v.reshape(-1))
        result: NDArray[Any] = sign * (operator @ flat).cpu().numpy()
        return result + scale * v.reshape(-1) if scale else result

    return product


def _symmetric(matrix: NDArray[Any]) -> NDArray[Any]:
    half: NDArray[Any] = (matrix + matrix.T) / 2
    return half
