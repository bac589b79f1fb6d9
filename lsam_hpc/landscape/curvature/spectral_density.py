"""Stochastic Lanczos quadrature: the spectral density of a matrix, from matrix-vector products alone.

Source: Ubaru, Chen and Saad 2017, "Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature"; Ghorbani, Krishnan
and Xiao 2019, "An Investigation into Neural Net Optimization via Hessian Eigenvalue Density", for networks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.curvature.products import Operator, curvature, seeded
from lsam_hpc.landscape.curvature.smoothed_density import WIDTH, Density
from lsam_hpc.landscape.objective import Objective

__all__ = ["WIDTH", "Density", "density"]


def density(
    objective: Objective,
    x: Tensor,
    matrix: str = "hessian",
    *,
    steps: int = 80,
    repeats: int = 10,
    seed: int = 0,
    params: Sequence[int] | None = None,
    check: bool = True,
) -> Density:
    """Return the spectral density of the Hessian or the Gauss-Newton matrix.

    m steps of Lanczos from a random v of length 1 give a tridiagonal T. Its eigenvalues and the squared first elements
    of its eigenvectors are the nodes and weights of a Gauss quadrature: sum w_k theta_k^j = v^T A^j v for j < 2 m. The
    mean over v of that is tr A^j / P. Lanczos vectors are not reorthogonalised, so only three are in memory. The effect
    is that a node may appear several times, with its weight divided among the copies.

    Args:
        objective: f on fixed data.
        x: the point, shape (P,).
        matrix: `"hessian"` (default) or `"ggn"`.
        steps: Lanczos steps m: products with the matrix per repeat. Default: 80.
        repeats: random vectors. The standard error of a share p is below sqrt(2 p / (P repeats)) for P eigenvalues of
            similar size. Default: 10.
        seed: of the random vectors.
        params: indices of parameters: take their diagonal block. Default: the whole matrix.
        check: see `curvature`.

    Raises:
        InputError: a number is out of range, or `curvature` raises it.
    """
    if steps < 1 or repeats < 1:
        raise InputError(f"density: expected 1 step and 1 repeat or more, found {steps} and {repeats}")
    with curvature(objective, x, matrix, params, check=check) as operator:
        return mean([quadrature(operator, steps, seed=seed, repeat=repeat) for repeat in range(repeats)])


def quadrature(operator: Operator, steps: int, *, seed: int = 0, repeat: int = 0) -> Density:
    """Return the density from one random vector, one of those of which `density` is the mean.

    Args:
        operator: the matrix.
        steps: Lanczos steps.
        seed: of the random vector.
        repeat: number of the vector; vectors are independent.
    """
    return Density(*lanczos(operator, random_start(operator, seed, repeat), steps))


def random_start(operator: Operator, seed: int, repeat: int = 0) -> Tensor:
    """Return the random vector of length 1 from which `quadrature` starts."""
    with seeded(seed, operator.device, repeat):
        start = torch.randn(operator.shape[0], dtype=operator.dtype, device=operator.device)
    return torch.nn.functional.normalize(start, dim=0)


def mean(parts: Sequence[Density]) -> Density:
    """Return the mean of densities."""
    nodes = np.concatenate([part.nodes for part in parts])
    weights = np.concatenate([part.weights / len(parts) for part in parts])
    order = np.argsort(nodes)
    return Density(nodes[order], weights[order])


def lanczos(operator: Operator, start: Tensor, steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return nodes and weights of the Gauss quadrature of a symmetric operator and a vector of length 1.

    There are fewer than `steps` of them if the vector lies in an invariant subspace.
    """
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    previous, current = torch.zeros_like(start), start
    eps = torch.finfo(start.dtype).eps
    while True:
        following = operator @ current
        diagonal.append(float(following @ current))
        following = following - diagonal[-1] * current - (off_diagonal[-1] if off_diagonal else 0.0) * previous
        length = float(torch.linalg.vector_norm(following))
        scale = max(map(abs, [*diagonal, *off_diagonal]))
        if len(diagonal) == min(steps, len(start)) or length <= 10 * eps * scale:
            break
        off_diagonal.append(length)
        previous, current = current, following / length
    t = np.diag(diagonal) + np.diag(off_diagonal, 1) + np.diag(off_diagonal, -1)
    theta, vectors = np.linalg.eigh(t)
    return theta, vectors[0] ** 2
