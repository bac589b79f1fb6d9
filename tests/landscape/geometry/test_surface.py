"""Surfaces of a quadratic against its closed form."""

import numpy as np
import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.landscape.geometry.surface import Settings, scan, values
from lsam_hpc.landscape.objective import Objective
from tests.helpers.landscapes import classifier, function, images, quadratic

X, Y = np.linspace(-1, 1, 5), np.linspace(-0.5, 1.5, 4)


def points(origin, directions):
    """Return the points of the grid, shape (ny, nx, P)."""
    return origin + X[None, :, None] * directions[0] + Y[:, None, None] * directions[1]


def test_f_and_f_sam_of_a_quadratic():
    f, h, c = quadratic()
    rng = np.random.default_rng(1)
    origin, directions = rng.standard_normal(6), rng.standard_normal((2, 6))
    surface = scan(f, origin, directions, X, Y, settings=Settings(("loss", "sam"), rho=0.3))
    offsets = points(origin, directions) - c
    expected = 0.5 * np.einsum("yxi,ij,yxj->yx", offsets, h, offsets)
    np.testing.assert_allclose(surface.values["loss"], expected, rtol=1e-12)
    assert np.isnan(surface.values["error"]).all()
    g = offsets @ h
    up = offsets + 0.3 * g / np.linalg.norm(g, axis=-1, keepdims=True)
    np.testing.assert_allclose(surface.values["loss_sam"], 0.5 * np.einsum("yxi,ij,yxj->yx", up, h, up), rtol=1e-12)


def test_the_regularised_loss_of_a_quadratic():
    f, h, c = quadratic()
    rng = np.random.default_rng(1)
    origin, directions = rng.standard_normal(6), rng.standard_normal((2, 6))
    surface = scan(f, origin, directions, X, Y, settings=Settings(("sam", "regularised"), rho=0.3))
    offsets = points(origin, directions) - c
    g = offsets @ h
    norm = np.linalg.norm(g, axis=-1)
    expected = 0.5 * np.einsum("yxi,ij,yxj->yx", offsets, h, offsets) + 0.3 * norm
    np.testing.assert_allclose(surface.values["loss_regularised"], expected, rtol=1e-12)
    # It is f_SAM without the term of second order in rho.
    second = 0.5 * 0.3**2 * np.einsum("yxi,ij,yxj->yx", g, h, g) / norm**2
    np.testing.assert_allclose(surface.values["loss_sam"] - surface.values["loss_regularised"], second, rtol=1e-9)
    assert values(f, torch.from_numpy(c), Settings(("regularised",), rho=0.3)) == [0.0]


def slope(f, x, rho):
    """Return the gradient of f + rho |grad f| by central differences of its values."""
    h, settings = 1e-5, Settings(("regularised",), rho=rho)
    ups, downs = ([values(f, x + s * h * e, settings)[0] for e in torch.eye(len(x)).double()] for s in (1, -1))
    return (np.array(ups) - np.array(downs)) / (2 * h)


def test_the_regularised_loss_has_the_gradient_of_sam_up_to_the_second_order_of_rho():
    """Exactly on a quadratic; half the radius makes a quarter of the difference elsewhere."""
    f, _, c = quadratic()
    x = torch.from_numpy(c + np.random.default_rng(2).standard_normal(6))
    sam = f.gradient(f.ascent(x, 0.3))[1].numpy()
    np.testing.assert_allclose(slope(f, x, 0.3), sam, rtol=1e-7, atol=1e-7)
    bent = function(lambda w: (w**4).sum() + (w.prod() + 1) ** 2 + torch.sin(3 * w[0]), 3)
    x = torch.tensor([0.4, -0.9, 0.7], dtype=torch.float64)
    gaps = [np.linalg.norm(slope(bent, x, rho) - bent.gradient(bent.ascent(x, rho))[1].numpy()) for rho in (0.02, 0.01)]
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.05)
    assert gaps[1] > 1e-5


def test_a_line_and_its_smoothed_loss():
    a = 3.0
    f = function(lambda x: 0.5 * a * x @ x, 1)
    settings = Settings(("smoothed",), rho=0.0, temperature=0.5, stiffness=2.0, samples=4000, seed=1)
    surface = scan(f, np.zeros(1), np.ones((1, 1)), X, settings=settings)
    expected = a * 2 / (2 * (a + 2)) * X**2 + 0.25 * np.log1p(a / 2)
    # Within 5 standard errors each.
    assert (np.abs(surface.values["loss_smoothed"] - expected) < 5 * surface.values["loss_smoothed_se"]).all()
    assert surface.values["loss_smoothed"].shape == (5,)
    assert (surface.values["loss_smoothed_ess"] > 100).all()


def test_error_and_the_order_of_a_classifiers_grid():
    torch.manual_seed(0)
    model = classifier()
    f = Objective(model, images())
    origin, directions = f.start().numpy(), np.random.default_rng(0).standard_normal((2, f.size)).astype(np.float32)
    surface = scan(f, origin, directions, X, Y)
    assert surface.shape == surface.values["error"].shape == (4, 5)
    x, y = (torch.cat(parts) for parts in zip(*images(), strict=True))
    for j, i in ((0, 0), (1, 3), (3, 2)):
        w = torch.from_numpy(points(origin, directions)[j, i])
        logits = x.double() @ w[:12].reshape(3, 4).T.double() + w[12:].double()
        loss = torch.nn.functional.cross_entropy(logits, y)
        assert surface.values["loss"][j, i] == pytest.approx(float(loss), rel=1e-5)
        assert surface.values["error"][j, i] == pytest.approx(100 * float((logits.argmax(1) != y).double().mean()))
    torch.testing.assert_close(f.start(), torch.from_numpy(origin), rtol=0, atol=0)


def test_nan_stays():
    f = function(lambda x: x[0].sqrt(), 1)
    surface = scan(f, np.zeros(1), np.ones((1, 1)), X)
    np.testing.assert_allclose(surface.values["loss"], np.sqrt(np.where(X < 0, np.nan, X)))
    settings = Settings(("sam", "smoothed"), rho=0.1)
    assert np.isnan(values(f, torch.tensor([-1.0]).double(), settings)).all()


def test_bad_input():
    f, _, _ = quadratic()
    with pytest.raises(InputError, match="directions: expected 2 for a plane, found 1"):
        scan(f, np.zeros(6), np.ones((1, 6)), X, Y)
    with pytest.raises(InputError, match="model: expected 5 parameters, as in the state, found 6"):
        scan(f, np.zeros(5), np.ones((1, 6)), X)
    for words, message in (
        ({"kinds": ("loss", "mood")}, "kinds: expected some of loss, sam, regularised, smoothed, found loss, mood"),
        ({"kinds": ()}, "kinds: expected some of .*, found none"),
        ({"rho": -1.0}, "rho: expected a number >= 0, found -1.0"),
        ({"kinds": ("smoothed",), "temperature": 0.0}, "temperature: expected a number > 0"),
        ({"kinds": ("smoothed",), "samples": 1}, "samples: expected 2 or more, found 1"),
    ):
        with pytest.raises(InputError, match=message):
            Settings(**words)
