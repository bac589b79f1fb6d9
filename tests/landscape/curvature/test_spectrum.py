"""Eigenvalues, traces and densities against closed forms and dense decompositions."""

import numpy as np
import pytest
import torch
from torch import nn

from lsam_hpc import InputError
from lsam_hpc.landscape.curvature.products import curvature, dense, layers
from lsam_hpc.landscape.curvature.spectral_density import Density, density, lanczos
from lsam_hpc.landscape.curvature.spectrum import eigenpairs
from lsam_hpc.landscape.curvature.trace import trace
from lsam_hpc.landscape.objective import Objective
from tests.helpers.landscapes import function


def half_square(outputs, targets):
    return 0.5 * (outputs - targets).square().sum(1).mean()


def regression(size, samples):
    """Return f(w) = |X w - y|^2 / (2 N) in batches of unequal size, and its Hessian X^T X / N."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, size, generator=generator, dtype=torch.float64)
    y = torch.randn(samples, 1, generator=generator, dtype=torch.float64)
    batches = list(zip(x.split(70), y.split(70), strict=True))
    return Objective(nn.Linear(size, 1, bias=False).double(), batches, half_square), (x.T @ x / samples).numpy()


class Net(nn.Module):
    """13 -> 18 -> 13 with tanh: 499 parameters."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(13, 18), nn.Linear(18, 13)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x)))


@pytest.fixture(scope="module")
def net():
    """Return f of a network of 499 parameters, a point, and its dense Hessian and Gauss-Newton matrix."""
    torch.manual_seed(1)
    model = Net().double()
    x, y = torch.randn(60, 13, dtype=torch.float64), torch.randint(13, (60,))
    f = Objective(model, list(zip(x.split(25), y.split(25), strict=True)))
    point = f.start() * 3

    def outputs(flat):
        pieces = flat.split([p.numel() for p in f.params])
        named = {name: piece.view(shape) for (name, shape), piece in zip(f.layout, pieces, strict=True)}
        return torch.func.functional_call(model, named, (x,))

    hessian = torch.autograd.functional.hessian(lambda w: nn.functional.cross_entropy(outputs(w), y), point)
    p = outputs(point).softmax(1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    jacobian = torch.autograd.functional.jacobian(outputs, point)
    ggn = torch.einsum("nai,nab,nbj->ij", jacobian, inner, jacobian) / len(y)
    return f, point, {"hessian": hessian.detach().numpy(), "ggn": ggn.detach().numpy()}


@pytest.mark.parametrize("size", [4, 150])  # dense decomposition, and Lanczos
def test_linear_regression(size):
    f, expected = regression(size, 400)
    x = torch.ones(size, dtype=torch.float64)
    values = np.linalg.eigvalsh(expected)[::-1]
    for matrix in ("hessian", "ggn"):
        top, vectors = eigenpairs(f, x, 3, matrix)
        np.testing.assert_allclose(top, values[:3], rtol=1e-6)
        np.testing.assert_allclose(expected @ vectors.T, vectors.T * top, atol=1e-6)
        np.testing.assert_allclose(vectors @ vectors.T, np.eye(3), atol=1e-8)
        assert (vectors[np.arange(3), np.abs(vectors).argmax(1)] > 0).all()
    if size == 4:
        assert trace(f, x) == pytest.approx((np.trace(expected), 0), rel=1e-6)


def test_softmax_regression():
    torch.manual_seed(0)
    x, y = torch.randn(50, 12, dtype=torch.float64), torch.randint(8, (50,))
    f = Objective(nn.Linear(12, 8, bias=False).double(), [(x[:33], y[:33]), (x[33:], y[33:])])
    w = torch.randn(96, dtype=torch.float64)
    p = (x @ w.view(8, 12).T).softmax(1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    expected = (torch.einsum("nab,ni,nj->aibj", inner, x, x) / 50).reshape(96, 96).numpy()
    for matrix in ("hessian", "ggn"):
        with curvature(f, w, matrix) as operator:
            np.testing.assert_allclose(dense(operator).numpy(), expected, atol=1e-6 * np.abs(expected).max())
        np.testing.assert_allclose(eigenpairs(f, w, 5, matrix)[0], np.linalg.eigvalsh(expected)[:-6:-1], rtol=1e-6)


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_eigenvalues_of_a_network(net, matrix):
    f, x, expected = net
    top, vectors = eigenpairs(f, x, 10, matrix)
    values, columns = np.linalg.eigh(expected[matrix])
    np.testing.assert_allclose(top, values[:-11:-1], rtol=1e-6)
    np.testing.assert_allclose(np.abs((vectors * columns[:, :-11:-1].T).sum(1)), 1, atol=1e-6)
    np.testing.assert_array_equal(eigenpairs(f, x, 10, matrix)[1], vectors)


def test_smallest_eigenvalues_of_a_network(net):
    f, x, expected = net
    low, vectors = eigenpairs(f, x, 3, end="smallest")
    values = np.linalg.eigvalsh(expected["hessian"])
    np.testing.assert_allclose(low, values[:3], rtol=1e-6)
    np.testing.assert_allclose(expected["hessian"] @ vectors.T, vectors.T * low, atol=1e-5 * values[-1])
    # Many eigenvalues of the Gauss-Newton matrix are 0.
    np.testing.assert_allclose(eigenpairs(f, x, 1, "ggn", end="smallest")[0], 0, atol=1e-6 * values[-1])


@pytest.mark.parametrize("size", [5, 200])  # dense decomposition, and Lanczos
def test_smallest_eigenvalues_of_a_saddle(size):
    values = np.linspace(-2, 3, size) ** 3
    h = torch.from_numpy(np.random.default_rng(0).permutation(values))
    f = function(lambda x: 0.5 * x @ (h * x), size)
    x = torch.ones(size, dtype=torch.float64)
    np.testing.assert_allclose(eigenpairs(f, x, 2, end="smallest")[0], values[:2], rtol=1e-8)
    np.testing.assert_allclose(eigenpairs(f, x, 2)[0], values[:-3:-1], rtol=1e-8)
    negative = function(lambda x: -0.5 * x @ (h.abs() * x), size)
    np.testing.assert_allclose(eigenpairs(negative, x, 1, end="smallest")[0], -27, rtol=1e-8)


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_layers_are_diagonal_blocks(net, matrix):
    f, x, expected = net
    ends = np.cumsum([p.numel() for p in f.params])
    assert layers(f) == {"first": [0, 1], "last": [2, 3]}
    for params, part in (
        ([0, 1], slice(0, ends[1])),
        ([2, 3], slice(ends[1], ends[3])),
        ([1], slice(ends[0], ends[1])),
    ):
        block = expected[matrix][part, part]
        with curvature(f, x, matrix, params) as operator:
            np.testing.assert_allclose(dense(operator).numpy(), block, atol=1e-6 * np.abs(block).max())
        np.testing.assert_allclose(
            eigenpairs(f, x, 3, matrix, params=params)[0], np.linalg.eigvalsh(block)[:-4:-1], rtol=1e-6
        )


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_trace_of_a_network(net, matrix):
    f, x, expected = net
    estimate = trace(f, x, matrix, products=60, repeats=10)
    # 5 standard errors with 9 degrees of freedom: a false alarm for one seed in 1,300.
    assert abs(estimate.value - np.trace(expected[matrix])) < 5 * estimate.error
    assert estimate.error < 0.02 * np.trace(expected["ggn"])
    assert trace(f, x, matrix, products=60, repeats=10) == estimate
    exact = trace(f, x, matrix, products=501)
    assert exact == pytest.approx((np.trace(expected[matrix]), 0), rel=1e-6)


@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_density_of_a_network(net, matrix):
    f, x, expected = net
    values = np.linalg.eigvalsh(expected[matrix])
    estimate = density(f, x, matrix, steps=40, repeats=15)
    assert estimate.weights.sum() == pytest.approx(1)
    assert estimate.nodes[0] >= values[0] - 1e-8
    assert estimate.nodes[-1] <= values[-1] + 1e-8
    # A share has a standard error below sqrt(2 * 0.25 / (499 * 15)) = 0.0082; 0.04 is 5 standard errors.
    at = np.linspace(values[0], values[-1], 200)
    width = 0.02 * np.ptp(values)
    smooth = Density(values, np.full(499, 1 / 499)).smoothed(at, width)
    space = at[1] - at[0]
    cumulated = np.abs(np.cumsum(estimate.smoothed(at, width) - smooth)).max() * space
    assert cumulated < 0.04
    grid = estimate.grid()
    assert estimate.smoothed(grid).sum() * (grid[1] - grid[0]) == pytest.approx(1, abs=1e-3)


def test_quadrature_is_exact_for_polynomials(net):
    f, x, expected = net
    v = torch.randn(499, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    v /= v.norm()
    with curvature(f, x) as operator:
        nodes, weights = lanczos(operator, v, 6)
    power = v.numpy()
    for degree in range(12):  # 2 * 6 - 1 and all below
        assert weights @ nodes**degree == pytest.approx(v.numpy() @ power, rel=1e-8)
        power = expected["hessian"] @ power


def test_density_of_a_matrix_with_few_eigenvalues():
    f, expected = regression(4, 30)
    estimate = density(f, torch.ones(4, dtype=torch.float64), steps=80, repeats=3)
    np.testing.assert_allclose(np.unique(estimate.nodes.round(8)), np.linalg.eigvalsh(expected), atol=1e-8)
    zero = Objective(nn.Linear(5, 1, bias=False), [(torch.zeros(3, 5), torch.zeros(3, 1))], half_square)
    flat = density(zero, torch.ones(5), repeats=2)
    np.testing.assert_array_equal(flat.nodes, 0)
    assert np.isfinite(flat.smoothed(flat.grid())).all()


def test_batch_norm_keeps_the_statistics_of_the_point():
    torch.manual_seed(0)
    x, y = torch.randn(30, 3, dtype=torch.float64), torch.randn(30, 1, dtype=torch.float64)
    model = nn.Sequential(nn.BatchNorm1d(3, affine=False), nn.Linear(3, 1, bias=False)).double()
    f = Objective(model, [(x, y)], half_square)
    z = (x - x.mean(0)) / (x.var(0) + 1e-5).sqrt()
    with curvature(f, torch.ones(3, dtype=torch.float64)) as operator:
        np.testing.assert_allclose(dense(operator).numpy(), (z.T @ z / 30).numpy(), rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(model[0].running_mean, 0)


def test_float32_is_close_to_float64(net):
    f, x, expected = net
    single = Objective(Net(), [(a.float(), b) for a, b in f.batches])
    np.testing.assert_allclose(
        eigenpairs(single, x.float(), 5)[0], np.linalg.eigvalsh(expected["hessian"])[:-6:-1], rtol=1e-4
    )


class Noisy(nn.Module):
    """A model whose loss and gradient are deterministic, but whose curvature is random."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return x @ (self.w + torch.rand(1) * self.w**2)


def test_bad_input():
    f, _ = regression(4, 30)
    x = torch.ones(4, dtype=torch.float64)
    for call, message in (
        (lambda: eigenpairs(f, x, 5), "eigenvalues: expected 1 to 4, found 5"),
        (lambda: eigenpairs(f, x, 1, "fisher"), "matrix: expected one of hessian, ggn, found 'fisher'"),
        (lambda: eigenpairs(f, x, 1, end="low"), "end: expected one of largest, smallest, found 'low'"),
        (lambda: eigenpairs(f, x * torch.nan, 1), "loss: expected a finite number at the given state, found nan"),
        (lambda: trace(f, x, products=10), "products: expected a multiple of 3, found 10"),
        (lambda: trace(f, x, repeats=1), "repeats: expected 2 or more, found 1"),
        (lambda: density(f, x, steps=0), "density: expected 1 step and 1 repeat or more, found 0 and 10"),
    ):
        with pytest.raises(InputError, match=message):
            call()
    noisy = Objective(Noisy(), [(torch.randn(9, 3), torch.randn(9))], lambda a, b: (a - b).square().mean())
    with pytest.raises(InputError, match="expected the same product with the hessian twice, found different ones"):
        eigenpairs(noisy, torch.zeros(3), 1)
