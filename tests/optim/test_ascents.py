"""Every ascent, metric and mask against its paper's formula, in float64 on flat vectors."""

import itertools

import pytest
import torch
from torch import nn

from lsam_hpc import SAM, InputError
from lsam_hpc.optim import masks
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


def test_fisher_ranks_the_gradient_also_under_the_adaptive_metric():
    x = nn.Parameter(torch.tensor([10.0, 0.01]))
    opt = SAM(torch.optim.SGD([x], lr=0.0), 1.0, metric="adaptive", mask=masks.Fisher(0.5))
    (x * torch.tensor([1.0, 5.0])).sum().backward()
    opt.perturb()
    assert mask_of(opt).tolist() == [0, 1]


@pytest.mark.parametrize("mask", ["random", "fisher"])
def test_sparse_masks_handle_parameters_that_are_used_in_turn(mask):
    # Three branches used in turn: each parameter keeps its mask until the next refresh.
    model = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(6, 5)]).double()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), 0.2, mask=mask)
    seen = {}
    for step, (x, _) in enumerate(batches(9)):

        def closure(x=x, step=step):
            opt.zero_grad()
            loss = (model[step % 3](x) ** 2).mean()
            loss.backward()
            return loss

        opt.step(closure)
        for i, m in opt.perturbation.mask.state_dict(opt.parameters)["masks"].items():
            assert torch.equal(seen.setdefault(i, m), m)
    assert len(seen) == 6


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


def test_norm_equals_sam_on():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 3)).double()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=LR), RHO, GAMMA, mask=masks.Norm(model))
    chosen = torch.cat([torch.full((p.numel(),), name.startswith("1.")) for name, p in model.named_parameters()])
    for images, labels in batches(10):
        x = flat(model)
        g = gradient(model, x, images, labels) * chosen
        expected = x - LR * gradient(model, x + RHO * g / (g.norm() + GAMMA), images, labels)
        opt.step(closure_of(model, opt, images, labels))
        close(flat(model), expected)
        close(opt.grad_norm, g.norm())


def test_layers_moves_the_parameters_that_match_the_patterns():
    def check(model, step, before, after, images, labels, opt):
        chosen = torch.cat(
            [torch.full((p.numel(),), n in ("0.bias", "2.weight", "2.bias")) for n, p in model.named_parameters()]
        )
        g = gradient(model, before, images, labels) * chosen
        close(after, before - LR * gradient(model, before + RHO * g / (g.norm() + GAMMA), images, labels))

    trained(10, check, mask=lambda model: masks.Layers(model, ["2.*", "*.bias"]))


@pytest.mark.parametrize(
    "make", [lambda: masks.Fisher(0.25, 4), lambda: masks.Random(0.25, 4, seed=3)], ids=["fisher", "random"]
)
def test_sparse_masks_equal_ssam(make):
    # e = rho * m g / (|g| + gamma): the norm is over all coordinates, then the mask is applied.
    mask, history = make(), []

    def check(model, step, before, after, images, labels, opt):
        g = gradient(model, before, images, labels)
        m = mask_of(opt)
        close(after, before - LR * gradient(model, before + RHO * m * g / (g.norm() + GAMMA), images, labels))
        close(opt.perturbation_norm, (RHO * m * g / (g.norm() + GAMMA)).norm())
        if isinstance(mask, masks.Fisher) and step % 4 == 0:
            top = torch.zeros_like(m)
            top[(g**2).topk(round(0.25 * len(g))).indices] = True
            assert torch.equal(m, top)
        history.append(m)

    trained(12, check, mask=mask)
    changes = [not torch.equal(a, b) for a, b in itertools.pairwise(history)]
    assert changes == [step % 4 == 0 for step in range(1, 12)]


def test_random_mask_has_its_density_and_repeats_for_its_seed():
    directions = [torch.ones(100, 100), torch.ones(50)]
    drawn = []
    for seed in (1, 1, 2):
        mask, copies = masks.Random(0.3, 1, seed), [d.clone() for d in directions]
        mask.prepare(directions, directions)
        mask.multiply_(directions, copies)
        drawn.append(copies[0])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    # 10,000 coordinates: the standard deviation of the share is 0.0046; the tolerance is 4 sigma.
    assert abs(drawn[0].mean() - 0.3) < 4 * 0.0046


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ascent": "twice"}, "ascent: expected one of sam, dp-sat, asyncsam, sampa, msam, center, gam, found 'twice'"),
        ({"metric": "l1"}, "metric: expected one of l2, adaptive, found 'l1'"),
        ({"eta": -1.0}, "eta: expected a finite number >= 0, found -1.0"),
        ({"interpolation": 1.5}, "interpolation: expected a number from 0 to 1, found 1.5"),
        ({"mask": "some"}, "mask: expected all, norm, random, fisher, layers or a mask, found 'some'"),
        ({"mask": "norm"}, "mask: expected lsam_hpc.optim.masks.Norm(model), because it needs the model, found 'norm'"),
    ],
)
def test_refuses_options_out_of_range(options, message):
    with pytest.raises(InputError) as caught:
        SAM(torch.optim.SGD(network().parameters(), lr=0.1), **options)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: masks.Norm(network()),
            "mask: expected a model with normalization layers that have parameters, found none",
        ),
        (
            lambda: masks.Layers(network(), ["9.*"]),
            "mask: expected a pattern that matches a parameter's name, found '9.*'",
        ),
        (lambda: masks.Random(0.0), "mask: expected a density > 0 and <= 1, found 0.0"),
        (lambda: masks.Fisher(0.5, 0), "mask: expected a refresh period of 1 ascent or more, found 0"),
    ],
)
def test_masks_refuse_wrong_arguments(make, message):
    with pytest.raises(InputError) as caught:
        make()
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
