"""Stochastic Lanczos quadrature: how the eigenvalues of a matrix are spread, known by its products alone.

Source: Ubaru, Chen and Saad 2017, "Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature"; Ghorbani, Krishnan
and Xiao 2019, "An Investigation into Neural Net Optimization via Hessian Eigenvalue Density", for networks. This is not
curvlinops' program because that one divides by zero where a matrix has fewer distinct eigenvalues than Lanczos has
steps, as those of small or linear models have, and hides the width of its bumps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.curvature import curvature, seeded
from lsam_hpc.landscape.objective import Objective

WIDTH = 0.01  # of a bump, standard deviation : range of the eigenvalues


@dataclass(frozen=True)
class Density:
    """The share of a matrix's eigenvalues at each place, as points of weight.

    Args:
        nodes: places, rising, shape (n,).
        weights: shares, 1 in all, shape (n,).
    """

    nodes: NDArray[np.float64]
    weights: NDArray[np.float64]

    @property
    def width(self) -> float:
        """Standard deviation of a bump that draws well: `WIDTH` of the range."""
        scale = max(abs(self.nodes[0]), abs(self.nodes[-1]), 1e-30)
        return WIDTH * max(float(self.nodes[-1] - self.nodes[0]), 1e-3 * float(scale))

    def grid(self, points: int = 1024) -> NDArray[np.float64]:
        """Return places that cover the bumps, shape (points,)."""
        return np.linspace(self.nodes[0] - 5 * self.width, self.nodes[-1] + 5 * self.width, points)

    def smoothed(self, at: NDArray[np.float64], width: float | None = None) -> NDArray[np.float64]:
        """Return the density, its integral being 1, with each point drawn as a Gaussian.

        Args:
            at: places, shape (m,).
            width: standard deviation. Default: `self.width`.
        """
        sigma = width or self.width
        away = (at[:, None] - self.nodes) / sigma
        found: NDArray[np.float64] = np.exp(-(away**2) / 2) @ self.weights / (sigma * np.sqrt(2 * np.pi))
        return found


def density(
    objective: Objective,
    x: Tensor,
    matrix: str = "hessian",
    steps: int = 80,
    repeats: int = 10,
    seed: int = 0,
    params: Sequence[int] | None = None,
    check: bool = True,
) -> Density:
    """Return the spectral density of the Hessian or the Gauss-Newton matrix.

    A Lanczos run of m steps from a random v of length 1 gives a tridiagonal T whose eigenvalues and squared first
    elements of the eigenvectors are the nodes and weights of a Gauss quadrature: sum w_k theta_k^j = v^T A^j v for
    j < 2 m. The mean over v of that is tr A^j / P. Vectors are not orthogonalised again, so that three are held: what
    this costs are copies of nodes that share their weight.

    Args:
        objective: f on fixed data.
        x: the point, shape (P,).
        matrix: `"hessian"` (default) or `"ggn"`.
        steps: m, of Lanczos; products with the matrix per repeat.
        repeats: random vectors. The standard error of a share p is below sqrt(2 p / (P repeats)) for P eigenvalues of
            like size.
        seed: of the vectors.
        params: indices of parameters whose diagonal block is meant. Default: all.
        check: evaluate twice first, and refuse what is random.

    Raises:
        InputError: as `curvature`, or a number is out of range.
    """
    if steps < 1 or repeats < 1:
        raise InputError(f"density: expected 1 step and 1 repeat or more, found {steps} and {repeats}")
    nodes, weights = [], []
    with curvature(objective, x, matrix, params, check) as operator, seeded(seed, objective.device):
        for _ in range(repeats):
            start = torch.randn(operator.shape[0], dtype=operator.dtype, device=operator.device)
            theta, share = lanczos(operator, start / torch.linalg.vector_norm(start), steps)
            nodes.append(theta)
            weights.append(share / repeats)
    places = np.concatenate(nodes)
    order = np.argsort(places)
    return Density(places[order], np.concatenate(weights)[order])


def lanczos(operator: Any, start: Tensor, steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:  # noqa: ANN401
    """Return nodes and weights of the Gauss quadrature of a symmetric operator and a vector of length 1.

    Fewer than `steps` come back where the vector lies in an invariant subspace.
    """
    diagonal: list[float] = []
    beside: list[float] = []
    before, now = torch.zeros_like(start), start
    small = torch.finfo(start.dtype).eps
    while True:
        after = operator @ now
        diagonal.append(float(after @ now))
        after = after - diagonal[-1] * now - (beside[-1] if beside else 0.0) * before
        length = float(torch.linalg.vector_norm(after))
        scale = max(map(abs, [*diagonal, *beside]))
        if len(diagonal) == min(steps, len(start)) or length <= 10 * small * scale:
            break
        beside.append(length)
        before, now = now, after / length
    t = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    theta, vectors = np.linalg.eigh(t)
    return theta, vectors[0] ** 2
