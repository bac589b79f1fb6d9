"""TVLARS against its equations in float64, and against another library's LARS where phi is constant."""

import math

import numpy as np
import pytest
import torch

from lsam_hpc import SAM, InputError
from lsam_hpc.optim.tvlars import TVLARS, phi
from tests.helpers.problems import batches, closure_of, flat, gradient, network


def by_hand(model, steps, *, lr, momentum, decay, eta, lambda_, delay, alpha, floor, rho=None):
    """Return the parameters after each step of the equations; with rho the gradients are SAM's."""
    shapes = [p.shape for p in model.parameters()]
    x, buffer, result = flat(model), torch.zeros_like(flat(model)), []
    for t, (images, labels) in enumerate(batches(steps), start=1):
        grads = gradient(model, x, images, labels)
        if rho is not None:
            grads = gradient(model, x + rho * grads / grads.norm(), images, labels)
        factor = 1 / (alpha + math.exp(lambda_ * (t - delay))) + floor
        pieces = []
        for shape, w, g in zip(shapes, *(v.split([s.numel() for s in shapes]) for v in (x, grads)), strict=True):
            if len(shape) == 1:
                pieces.append(g)
                continue
            w_norm, g_norm = math.sqrt((w**2).sum()), math.sqrt((g**2).sum())
            pieces.append(eta * factor * w_norm / (g_norm + decay * w_norm) * (g + decay * w))
        buffer = momentum * buffer + torch.cat(pieces)
        x = x - lr * buffer
        result.append(x)
    return result


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(
    "shape",
    [
        {"lambda_": 0.5, "delay": 8, "alpha": 1.0, "floor": 0.05},
        {"lambda_": 0.1, "delay": 0, "alpha": 0.1, "floor": 0.0},
    ],
)
@pytest.mark.parametrize("rho", [None, 0.1])
def test_equals_its_equations_in_float64(momentum, shape, rho):
    model = network()
    common = {"lr": 2.0, "momentum": momentum, **shape}
    expected = by_hand(model, 20, decay=0.01, eta=0.02, rho=rho, **common)
    base = TVLARS(model.parameters(), weight_decay=0.01, trust_coefficient=0.02, **common)
    opt = base if rho is None else SAM(base, rho, 0.0)
    for x, (images, labels) in zip(expected, batches(20), strict=True):
        opt.step(closure_of(model, opt, images, labels))
        torch.testing.assert_close(flat(model), x, rtol=0, atol=1e-12)
    assert (flat(model) - flat(network())).abs().max() > 0.1


@pytest.mark.parametrize(
    ("shape", "coefficient"),
    [
        ({"lambda_": 1e3, "delay": 1000}, 0.02),  # before the fall
        ({"lambda_": 1e3, "delay": 0, "floor": 0.3}, 0.3 * 0.02),  # after it
        ({"lambda_": 0.0, "floor": 0.25}, 0.75 * 0.02),  # in its middle, for ever
    ],
)
def test_is_lars_of_another_library_where_phi_is_constant(shape, coefficient):
    import pytorch_optimizer  # the import takes a second

    ours, theirs = network(), network()
    common = {"lr": 2.0, "momentum": 0.9, "weight_decay": 0.01}
    opt = TVLARS(ours.parameters(), trust_coefficient=0.02, **common, **shape)
    peer = pytorch_optimizer.LARS(theirs.parameters(), trust_coefficient=coefficient, **common)
    for x, y in batches(20):
        for model, optimizer in ((ours, opt), (theirs, peer)):
            closure_of(model, optimizer, x, y)()
            optimizer.step()
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=0, atol=1e-12)


def test_phi_falls_from_its_upper_to_its_lower_limit_without_overflow():
    steps = [0, 40, 50, 60, 100, 10**6, 10**9]
    factors = [phi(t, 0.5, 50, 2.0, 0.1) for t in steps]
    assert factors == sorted(factors, reverse=True)
    np.testing.assert_allclose(factors[:3], [0.6, 1 / (2 + math.exp(-5)) + 0.1, 1 / 3 + 0.1], rtol=1e-10)
    np.testing.assert_allclose(factors[3:5], [1 / (2 + math.exp(5)) + 0.1, 1 / (2 + math.exp(25)) + 0.1], rtol=1e-14)
    assert factors[5:] == [0.1, 0.1]


def test_a_layer_without_length_or_gradient_has_rate_1():
    layers = [torch.nn.Parameter(torch.full((2, 2), value, dtype=torch.float64)) for value in (0.0, 3.0, 3.0)]
    opt = TVLARS([{"params": layers[:2]}, {"params": layers[2:], "weight_decay": 0.5}], lr=0.1, trust_coefficient=0.01)
    layers[0].grad = torch.ones_like(layers[0])
    layers[1].grad, layers[2].grad = torch.zeros_like(layers[1]), torch.zeros_like(layers[2])
    opt.step()
    assert torch.equal(layers[0], torch.full_like(layers[0], -0.1))
    assert torch.equal(layers[1], torch.full_like(layers[1], 3.0))
    factor = 0.01 / (1 + math.exp(1e-3))  # |w| / (0.5 |w|) * 0.5 w = w
    torch.testing.assert_close(
        layers[2].detach(), torch.full_like(layers[2], 3 * (1 - 0.1 * factor)), rtol=1e-14, atol=0
    )
    assert all(torch.equal(p.grad, value * torch.ones_like(p)) for p, value in zip(layers, (1, 0, 0), strict=True))


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"lr": -1.0}, "lr: expected a finite number >= 0, found -1.0"),
        ({"momentum": 1.0}, "momentum: expected a number >= 0 and < 1, found 1.0"),
        ({"weight_decay": -0.1}, "weight_decay: expected a finite number >= 0, found -0.1"),
        ({"trust_coefficient": math.nan}, "trust_coefficient: expected a finite number >= 0, found nan"),
        ({"lambda_": -1.0}, "lambda_: expected a finite number >= 0, found -1.0"),
        ({"delay": -1}, "delay: expected a finite number >= 0, found -1"),
        ({"alpha": 0.0}, "alpha: expected a finite number > 0, found 0.0"),
        ({"floor": -1.0}, "floor: expected a finite number >= 0, found -1.0"),
    ],
)
def test_says_what_is_wrong_in_one_line(argument, message):
    with pytest.raises(InputError) as caught:
        TVLARS(network().parameters(), **{"lr": 0.1, **argument})
    assert str(caught.value) == message
