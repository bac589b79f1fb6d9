"""Lanczos with restarts: both ends of a symmetric matrix's spectrum, and a quadrature, from one Krylov space."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.curvature.products import Operator
from lsam_hpc.landscape.curvature.smoothed_density import Density

BYTES = 2 * 2**30  # of vectors that are kept
MOST = 300  # vectors that are kept: with more, the decompositions of the small matrix take as long as the products
LEAST = 20


class Extremes(NamedTuple):
    """Eigenvalues at both ends of a spectrum, with vectors of length 1 of shape (number, P)."""

    largest: NDArray[np.float64]  # descending
    vectors: NDArray[np.float64]
    smallest: NDArray[np.float64]  # ascending
    low_vectors: NDArray[np.float64]
    density: Density | None


def room(size: int, dtype: torch.dtype, wanted: int) -> int:
    """Return how many vectors are kept: those that fit into `BYTES`, but never less than 2 for each eigenvalue."""
    return min(size, max(2 * wanted + 2, LEAST, min(BYTES // (size * dtype.itemsize), MOST)))


def lanczos_extremes(
    operator: Operator, start: Tensor, largest: int, smallest: int, *, tolerance: tuple[float, float], steps: int = 0
) -> Extremes:
    """Return the largest and the smallest eigenvalues of a symmetric matrix of more than 2 (largest + smallest) rows.

    Each product adds a vector, which is orthogonalised against all that are kept. When there is no room for more, the
    Ritz vectors of both ends are kept and the iteration goes on from them. It ends when all |A v - w v| are at most
    the first tolerance times |w|; for the smallest w, which may be 0, the second one times the largest |w|.

    Args:
        operator: the matrix A.
        start: the first vector, shape (P,), of length 1.
        largest: how many of the largest eigenvalues, 0 or more.
        smallest: how many of the smallest, 0 or more.
        tolerance: of the largest and of the smallest.
        steps: also return the quadrature of the start vector (`spectral_density.quadrature`) of so many steps, at most
            `room`. Default: 0, none.

    Raises:
        InputError: a product is not finite, or the iteration does not converge in 10 P products.

    Source: Wu and Simon 2000, "Thick-Restart Lanczos Method for Large Symmetric Eigenvalue Problems".
    """
    size, wanted = operator.shape[0], largest + smallest
    basis = torch.empty(room(size, operator.dtype, wanted), size, dtype=operator.dtype, device=operator.device)
    basis[0] = start
    t = np.zeros((len(basis), len(basis)))  # the matrix in the basis
    generator = torch.Generator().manual_seed(0)
    least = max(LEAST, 2 * wanted + 1)  # fewer vectors may miss copies of an eigenvalue
    used, test, density = 0, least, None
    for products in range(1, 10 * size + 1):
        following = operator @ basis[used]
        t[used, used], beta = _orthogonalise(following, basis[: used + 1])
        used += 1
        if not math.isfinite(t[used - 1, used - 1] + beta):
            raise InputError(f"eigenvalues: expected finite products with the matrix, found {beta}")
        rounding = 10 * torch.finfo(operator.dtype).eps * float(np.abs(t[:used, :used]).max())
        exact = beta <= rounding  # the vectors span an invariant space
        full = used == len(basis)
        if full or exact or used in (steps, test):
            theta, s = np.linalg.eigh(t[:used, :used])
            if steps and density is None and (exact or used == steps):
                density = Density(theta, s[0] ** 2)
            if used == size or (products >= least and used >= wanted and (density or not steps)):
                ends, scale = np.r_[:smallest, used - largest : used], float(np.abs(theta).max())
                allowed = np.r_[np.full(smallest, tolerance[1] * scale), tolerance[0] * np.abs(theta[used - largest :])]
                if used == size or (beta * np.abs(s[-1, ends]) <= np.maximum(allowed, rounding)).all():
                    vectors = (torch.from_numpy(s[:, ends]).to(basis).T @ basis[:used]).double().cpu().numpy()
                    high, low = theta[ends][smallest:][::-1], theta[:smallest]
                    return Extremes(high, vectors[smallest:][::-1], low, vectors[:smallest], density)
            test = max(test, used + used // 10 + 1)
        if full:  # keep the Ritz vectors of the ends, and others beside them
            more = (used - wanted) // 2
            below = smallest + more * smallest // wanted
            kept = np.r_[:below, used - (wanted + more - below) : used]
            basis[: len(kept)] = torch.from_numpy(s[:, kept]).to(basis).T @ basis
            t[:] = 0.0
            used = len(kept)
            t[:used, :used] = np.diag(theta[kept])
            t[used, :used] = t[:used, used] = beta * s[-1, kept]
            test = used + used // 10 + 1
        else:
            t[used, used - 1] = t[used - 1, used] = beta
        if exact:
            following = torch.randn(size, generator=generator, dtype=torch.float64).to(basis)
            _orthogonalise(following, basis[:used])
            t[used, :used] = t[:used, used] = 0.0
            beta = float(torch.linalg.vector_norm(following))
        basis[used] = following / beta
    raise InputError(f"eigenvalues: expected {wanted} that converge: compute fewer, or use float64 (--double)")


def _orthogonalise(v: Tensor, basis: Tensor) -> tuple[float, float]:
    """Make v orthogonal to all of a basis, in place; return its part along the last vector, and the length left."""
    along = 0.0
    for _ in range(2):  # once more, for what rounding left
        parts = basis @ v
        v.addmv_(basis.T, parts, alpha=-1)
        along += float(parts[-1])
    return along, float(torch.linalg.vector_norm(v))
