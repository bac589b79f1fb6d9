"""Eigenvalues at both ends from one Krylov space, against diagonal matrices and ARPACK."""

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from lsam_hpc import InputError
from lsam_hpc.landscape.curvature import lanczos
from lsam_hpc.landscape.curvature.spectral_density import random_start
from lsam_hpc.landscape.curvature.spectrum import TOLERANCE, extremes

SIZE = 200
NOISE = np.linspace(-0.3, 0.2, SIZE) ** 3
SPECTRA = {
    "a network's": np.r_[np.linspace(5, 40, 9), NOISE[9:]],
    "powers": 1 / np.arange(1.0, SIZE + 1),
    "a saddle's": np.linspace(-2, 3, SIZE) ** 3,
    "pairs": np.r_[np.repeat([40.0, 30.0, 20.0], 2), NOISE[6:]],
    "one value": np.full(SIZE, 3.0),
    "few values": np.r_[np.full(5, 4.0), np.ones(SIZE - 9), np.full(4, -2.0)],
    "zero": np.zeros(SIZE),
}


class Diagonal:
    """A diagonal matrix that counts the products with it."""

    def __init__(self, values, dtype=torch.float64):
        self.values = torch.from_numpy(np.random.default_rng(0).permutation(values)).to(dtype)
        self.shape, self.dtype, self.device = (len(values),) * 2, dtype, torch.device("cpu")
        self.products = 0

    def __matmul__(self, v):
        self.products += 1
        return self.values * v


@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize("restarts", [False, True])
def test_both_ends(name, restarts, monkeypatch):
    monkeypatch.setattr(lanczos, "BYTES", 0 if restarts else 2**31)
    values = np.sort(SPECTRA[name])
    for dtype, close in ((torch.float64, 1e-9), (torch.float32, 2e-6)):
        matrix = Diagonal(values, dtype)
        ends = extremes(matrix, 3, 2)
        scale = max(np.abs(values).max(), 1e-3)
        np.testing.assert_allclose(ends.largest, values[:-4:-1], atol=close * scale)
        np.testing.assert_allclose(ends.smallest, values[:2], atol=max(close, 1e-5) * scale)
        vectors = np.concatenate([ends.vectors, ends.low_vectors])
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(5), atol=1e2 * torch.finfo(dtype).eps)
        moved = vectors * matrix.values.double().numpy()
        found = np.concatenate([ends.largest, ends.smallest])
        assert np.linalg.norm(moved - found[:, None] * vectors, axis=1).max() <= 2e-5 * scale


@pytest.mark.parametrize("name", ["a network's", "powers", "pairs"])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_no_more_products_than_arpack(name, k):
    for dtype in (torch.float64, torch.float32):
        ours, theirs = Diagonal(SPECTRA[name], dtype), Diagonal(SPECTRA[name], dtype)
        product = lambda v: (theirs @ torch.from_numpy(v.reshape(-1))).numpy()  # noqa: B023, E731
        kind = np.dtype(str(dtype).removeprefix("torch."))
        start = np.random.default_rng(0).standard_normal(SIZE).astype(kind)
        linear = LinearOperator(theirs.shape, matvec=product, dtype=kind)
        eigsh(linear, k, which="LA", tol=TOLERANCE[kind.itemsize], v0=start)
        extremes(ours, k)
        assert ours.products <= 1.1 * theirs.products


def test_eigenvalues_of_0_need_no_relative_tolerance():
    matrix = Diagonal(np.r_[5.0, 4.0, 1e-9 * NOISE[2:]], torch.float32)  # 0 up to rounding
    np.testing.assert_allclose(extremes(matrix, 4).largest, [5, 4, 0, 0], atol=1e-6)
    assert matrix.products < 2 * lanczos.LEAST


def test_the_quadrature_of_the_first_steps(monkeypatch):
    matrix = Diagonal(SPECTRA["a network's"])
    ends = extremes(matrix, 3, seed=5, steps=15)
    alone = Diagonal(SPECTRA["a network's"])
    extremes(alone, 3, seed=5)
    assert matrix.products == alone.products
    start, values = random_start(matrix, 5).numpy(), matrix.values.numpy()
    for degree in range(30):
        expected = start**2 @ values**degree
        assert ends.density.weights @ ends.density.nodes**degree == pytest.approx(expected, rel=1e-9)
    monkeypatch.setattr(lanczos, "MOST", 30)
    assert extremes(matrix, 3, steps=31).density is None  # so many vectors are not kept
    few = extremes(Diagonal(SPECTRA["few values"]), 3, steps=15).density
    np.testing.assert_allclose(few.nodes, [-2, 1, 4], atol=1e-9)
    assert few.weights.sum() == pytest.approx(1)


def test_products_that_are_not_finite():
    with pytest.raises(InputError, match="eigenvalues: expected finite products with the matrix, found nan"):
        extremes(Diagonal(np.full(SIZE, np.nan)), 1)
