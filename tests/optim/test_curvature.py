"""The largest Hessian eigenvalue during training: exact to 1e-3, few products, and training is not disturbed."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, hessian
from torch.nn import functional

from lsam_hpc import SAM, InputError
from lsam_hpc.optim import curvature
from lsam_hpc.optim.curvature import LEAST, MOST, TOLERANCE, TopEigenvalue

pytestmark = pytest.mark.usefixtures("torch_threads")
DOUBLE = torch.float64


def network(dtype=DOUBLE):
    torch.manual_seed(0)
    layers = (nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 3))
    return nn.Sequential(*layers).to(dtype)


def images(dtype=DOUBLE, seed=1, n=40):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=dtype)
    return x, (x[:, :3] + 0.5 * torch.randn(n, 3, generator=generator, dtype=dtype)).argmax(1)


def dense(model, batches):
    """Return the Hessian by torch.func, with BatchNorm's statistics those of the batches' means."""
    copy = network(next(model.parameters()).dtype).eval()
    copy.load_state_dict(model.state_dict())
    means = [copy[0](x).detach() for x, _ in batches]
    copy[1].running_mean.copy_(torch.stack([h.mean(0) for h in means]).mean(0))
    copy[1].running_var.copy_(torch.stack([h.var(0) for h in means]).mean(0))
    params = {name: p.detach() for name, p in copy.named_parameters()}
    flat = torch.cat([p.reshape(-1) for p in params.values()])

    def f(vector):
        pieces = vector.split([p.numel() for p in params.values()])
        named = {name: piece.view(p.shape) for (name, p), piece in zip(params.items(), pieces, strict=True)}
        losses = [functional.cross_entropy(functional_call(copy, named, x), y, reduction="sum") for x, y in batches]
        return sum(losses) / sum(len(y) for _, y in batches)

    return hessian(f)(flat)


def train(model, opt, steps, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x, y = images(next(model.parameters()).dtype, seed=2, n=100)
    for _ in range(steps):
        chosen = torch.randint(100, (16,), generator=generator)

        def closure(chosen=chosen):
            opt.zero_grad()
            loss = functional.cross_entropy(model(x[chosen]), y[chosen])
            loss.backward()
            return loss

        opt.step(closure)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_against_the_dense_hessian_along_training(dtype):
    model, (x, y) = network(dtype), images(dtype)
    batches = list(zip(x.split(25), y.split(25), strict=True))
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.05)
    top = TopEigenvalue(model, batches)
    for i in range(8):
        values = torch.linalg.eigvalsh(dense(model, batches))
        result = top.measure()
        assert result.eigenvalue == pytest.approx(float(values[-1]), rel=1e-3)
        assert result.eigenvalue <= float(values[-1]) * (1 + 1e-6)
        assert float((values - result.eigenvalue).abs().min()) <= result.residual + 1e-6
        assert result.residual <= TOLERANCE * result.eigenvalue
        assert LEAST <= result.products <= (MOST if i == 0 else 20)
        train(model, opt, 10, seed=i)


class Quadratic(nn.Module):
    """f = sum(d w^2) / 2, whose eigenvalues are d."""

    def __init__(self, d):
        super().__init__()
        self.w, self.d = nn.Parameter(torch.zeros(len(d), dtype=DOUBLE)), d

    def forward(self, x):
        return (self.d * self.w**2).sum() / 2 + 0 * x


def of_quadratic(d):
    model = Quadratic(torch.as_tensor(d, dtype=DOUBLE))
    return model, TopEigenvalue(model, [(torch.zeros(1, dtype=DOUBLE), torch.zeros(1))], lambda out, _: out.mean())


def test_an_eigenvalue_that_overtakes_the_largest_is_found():
    d = np.concatenate([[5.0, 4.0], np.linspace(-0.5, 1, 300)])
    model, top = of_quadratic(d)
    assert [top.measure().eigenvalue for _ in range(3)] == pytest.approx([5] * 3, rel=1e-3)
    model.d[1] = 8
    assert top.measure().eigenvalue == pytest.approx(8, rel=1e-3)
    model.d[1] = 2
    assert top.measure().eigenvalue == pytest.approx(5, rel=1e-3)


@pytest.mark.parametrize("d", [[3.0], [-2.0, -5.0], [0.0, 0.0, 0.0], [1.0] * 30, [-1.0] * 20 + [1e-3]])
def test_degenerate_spectra(d):
    _, top = of_quadratic(d)
    for _ in range(2):
        result = top.measure()
        assert result.eigenvalue == pytest.approx(max(d), rel=1e-3, abs=1e-12)
        assert result.products <= MOST


def test_hard_spectra_stop_at_the_largest_number_of_products():
    d = np.linspace(0, 1, 3000)  # the eigenvalues have no gap
    _, top = of_quadratic(d)
    result = top.measure()
    assert result.products <= MOST
    assert np.abs(d - result.eigenvalue).min() <= result.residual
    assert result.eigenvalue <= 1


def test_the_residual_is_that_of_the_ritz_vector(monkeypatch):
    monkeypatch.setattr(curvature, "MOST", 3)
    d = np.linspace(-1, 3, 40)
    _, top = of_quadratic(d)
    result = top.measure()
    start = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=DOUBLE).numpy()
    basis, _ = np.linalg.qr(np.stack([start, d * start, d**2 * start], 1))
    values, vectors = np.linalg.eigh(basis.T @ (d[:, None] * basis))
    ritz = basis @ vectors[:, -1]
    assert result.products == 3
    assert result.eigenvalue == pytest.approx(values[-1], rel=1e-12)
    assert result.residual == pytest.approx(np.linalg.norm(d * ritz - values[-1] * ritz), rel=1e-10)


class Noise(nn.Module):
    """Draws random numbers in eval mode too, and adds none of them."""

    def forward(self, x):
        return x + 0 * torch.rand_like(x)


def test_training_is_not_disturbed():
    weights = []
    for measured in (False, True):
        model = nn.Sequential(Noise(), *network(torch.float32))
        base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        opt = SAM(base, rho=0.05, model=model)
        top = TopEigenvalue(model, [images(torch.float32)])
        torch.manual_seed(3)  # of the dropout
        for i in range(6):
            train(model, opt, 1, seed=i)
            before = [t.clone() for t in (*(p.grad for p in model.parameters()), *model.buffers())]
            if measured:
                top.measure()
            after = [*(p.grad for p in model.parameters()), *model.buffers()]
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
            assert all(module.training for module in model.modules())
        weights.append([*model.parameters(), *model.buffers(), torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_the_state_continues_to_the_bit():
    model = network()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.05)
    one, other = TopEigenvalue(model, [images()]), TopEigenvalue(model, [images()], seed=5)
    one.measure()
    train(model, opt, 5)
    other.load_state_dict(one.state_dict())
    assert one.measure() == other.measure()
    fresh = TopEigenvalue(model, [images()])
    fresh.load_state_dict(TopEigenvalue(model, [images()]).state_dict())  # before the first measurement
    assert fresh.measure() == TopEigenvalue(model, [images()]).measure()


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return grad


class OnceModel(nn.Linear):
    def forward(self, x):
        return Once.apply(super().forward(x))


def test_what_cannot_be_measured():
    model = OnceModel(4, 3).double()
    with pytest.raises(InputError, match="model: expected layers that can be differentiated twice, found"):
        TopEigenvalue(model, [images()]).measure()
    model = network()
    with torch.no_grad():
        model[4].bias[0] = math.nan
    with pytest.raises(InputError, match="curvature: expected finite products with the Hessian"):
        TopEigenvalue(model, [images()]).measure()
    with pytest.raises(InputError, match="curvature: expected samples and trainable parameters, found 0 and 6"):
        TopEigenvalue(network(), [])
    assert curvature.ROUND < MOST
