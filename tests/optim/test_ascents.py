"""Every ascent and metric against its paper's formula, in float64 on flat vectors."""

import pytest
import torch
from torch import nn

from lsam_hpc import SAM, InputError
from tests.helpers.problems import batches, closure_of, flat, gradient, network

LR, RHO, GAMMA = 0.3, 0.2, 1e-3


def trained(steps, check, **options):
    """Train a network and call check(step, x before, x after, images, labels, optimizer) after every step."""
    model = network()
    if callable(options.get("mask")):
        options["mask"] = options["mask"](model)
    opt = SAM(torch.optim.SGD(model.parameters(), lr=LR), RHO, GAMMA, **options)
    for step, (images, labels) in enumerate(batches(steps)):
        before = flat(model)
        opt.step(closure_of(model, opt, images, labels))
        check(model, step, before, flat(model), images, labels, opt)


def mask_of(opt):
    state = opt.perturbation.mask.state_dict(opt.parameters)
    return torch.cat([state["masks"][i].reshape(-1).double() for i in range(len(opt.parameters))])


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("eta", [0.0, 0.01, 1.0])
def test_adaptive_equals_asam(eta):
    def check(model, step, before, after, images, labels, opt):
        g, scale = gradient(model, before, images, labels), before.abs() + eta
        ascent = RHO * scale**2 * g / ((scale * g).norm() + GAMMA)
        close(after, before - LR * gradient(model, before + ascent, images, labels))
        close(opt.perturbation_norm, ascent.norm())

    trained(20, check, metric="adaptive", eta=eta)


def test_adaptive_agrees_with_pytorch_optimizer():
    import pytorch_optimizer  # the import takes a second

    ours, theirs = network(torch.float32), network(torch.float32)
    opt = SAM(torch.optim.SGD(ours.parameters(), lr=0.1), 0.5, metric="adaptive", eta=0.0)
    peer = pytorch_optimizer.SAM(theirs.parameters(), torch.optim.SGD, rho=0.5, adaptive=True, lr=0.1)
    for x, y in batches(30, torch.float32):
        opt.step(closure_of(ours, opt, x, y))
        closure = closure_of(theirs, peer, x, y)
        closure()
        peer.first_step(zero_grad=True)
        closure()
        peer.second_step()
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ascent": "twice"}, "ascent: expected one of sam, dp-sat, asyncsam, sampa, msam, center, gam, found 'twice'"),
        ({"metric": "l1"}, "metric: expected one of l2, adaptive, found 'l1'"),
        ({"eta": -1.0}, "eta: expected a finite number >= 0, found -1.0"),
        ({"interpolation": 1.5}, "interpolation: expected a number from 0 to 1, found 1.5"),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(InputError) as caught:
        SAM(torch.optim.SGD(network().parameters(), lr=0.1), **options)
    assert str(caught.value) == message


def test_a_zero_gradient_with_gamma_0_moves_nothing():
    x = nn.Parameter(torch.zeros(3))
    opt = SAM(torch.optim.SGD([x], lr=0.1), 0.5, 0.0)

    def closure():
        opt.zero_grad()
        loss = (x**2).sum()
        loss.backward()
        return loss

    opt.step(closure)
    assert torch.equal(x.detach(), torch.zeros(3))
