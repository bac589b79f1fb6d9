"""SAM against its definition, another library, and torch's schedulers and states."""

import pytest
import torch
from torch import nn

from lsam_hpc import SAM, InputError
from tests.helpers.problems import batches, closure_of, flat, gradient, network


def test_equals_the_two_pass_definition_in_float64():
    model, lr, rho, gamma = network(), 0.3, 0.2, 1e-3
    opt = SAM(torch.optim.SGD(model.parameters(), lr=lr), rho, gamma)
    x = flat(model)
    for images, labels in batches(50):
        g = gradient(model, x, images, labels)
        ascent = rho * g / (g.norm() + gamma)
        x = x - lr * gradient(model, x + ascent, images, labels)
        opt.step(closure_of(model, opt, images, labels))
        torch.testing.assert_close(flat(model), x, rtol=0, atol=1e-12)


def test_agrees_with_pytorch_optimizer_over_50_steps():
    import pytorch_optimizer  # the import takes a second

    ours, theirs = network(torch.float32), network(torch.float32)
    opt = SAM(torch.optim.SGD(ours.parameters(), lr=0.1, momentum=0.9), rho=0.1)
    peer = pytorch_optimizer.SAM(theirs.parameters(), torch.optim.SGD, rho=0.1, lr=0.1, momentum=0.9)
    for x, y in batches(50, torch.float32):
        opt.step(closure_of(ours, opt, x, y))
        closure = closure_of(theirs, peer, x, y)
        closure()
        peer.first_step(zero_grad=True)
        closure()
        peer.second_step()
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, 0.1, 0.9), lambda p: torch.optim.AdamW(p, 0.01)])
def test_rho_0_equals_the_base_optimizer_to_the_bit(make):
    ours, plain = network(), network()
    opt, base = SAM(make(ours.parameters()), rho=0.0), make(plain.parameters())
    for x, y in batches(20):
        opt.step(closure_of(ours, opt, x, y))
        base.step(closure_of(plain, base, x, y))
    assert torch.equal(flat(ours), flat(plain))


def test_each_group_has_its_own_rho_and_the_norm_is_over_all():
    model, lr = network(), 0.3
    first, second = list(model[0].parameters()), list(model[2].parameters())
    groups = [{"params": first, "rho": 0.5}, {"params": second}]
    opt = SAM(torch.optim.SGD(groups, lr=lr), rho=0.1, gamma=0.0)
    radii = ((first, 0.5), (second, 0.1))
    rho = torch.cat([torch.full((p.numel(),), r, dtype=torch.float64) for ps, r in radii for p in ps])
    x = flat(model)
    for images, labels in batches(5):
        g = gradient(model, x, images, labels)
        x = x - lr * gradient(model, x + rho * g / g.norm(), images, labels)
        opt.step(closure_of(model, opt, images, labels))
    torch.testing.assert_close(flat(model), x, rtol=0, atol=1e-12)


def test_rho_may_be_a_callable_of_the_step():
    seen = []
    model = network()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=lambda step: 0.01 * step)
    for x, y in batches(4):
        opt.step(closure_of(model, opt, x, y))
        seen.append(opt.param_groups[0]["rho"])
    assert seen == pytest.approx([0.0, 0.01, 0.02, 0.03])


@pytest.mark.parametrize("on_base", [True, False])
def test_schedulers_act_on_either_optimizer(on_base):
    model = network()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=1.0))
    scheduler = torch.optim.lr_scheduler.StepLR(opt.base if on_base else opt, 1, 0.5)
    before = flat(model)
    for x, y in batches(3):
        opt.step(closure_of(model, opt, x, y))
        scheduler.step()
    assert opt.param_groups[0]["lr"] == opt.base.param_groups[0]["lr"] == 0.125
    assert not torch.equal(flat(model), before)


def test_groups_and_state_stay_those_of_the_base():
    model = network()
    opt = SAM(torch.optim.SGD(model[0].parameters(), lr=0.1, momentum=0.9), rho=0.3)
    opt.add_param_group({"params": list(model[2].parameters()), "rho": 0.7})
    assert [g["rho"] for g in opt.param_groups] == [0.3, 0.7]
    x, y = next(batches(1))
    opt.step(closure_of(model, opt, x, y))
    opt.load_state_dict(opt.state_dict())
    assert opt.param_groups is opt.base.param_groups
    assert opt.state is opt.base.state
    assert len(opt.state) == 4


def test_parameters_keep_their_memory():
    model = network()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    places = [p.data_ptr() for p in model.parameters()]
    for x, y in batches(3):
        opt.step(closure_of(model, opt, x, y))
    assert places == [p.data_ptr() for p in model.parameters()]


def test_parameters_are_restored_when_the_closure_fails_at_the_perturbed_point():
    model = network()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.5)
    x, y = next(batches(1))
    good, calls, before = closure_of(model, opt, x, y), [], flat(model)

    def closure():
        calls.append(flat(model))
        if len(calls) == 2:
            raise KeyError("the data loader broke")
        return good()

    with pytest.raises(KeyError):
        opt.step(closure)
    assert not torch.equal(calls[1], before)
    assert torch.equal(flat(model), before)


def test_parameters_without_a_gradient_are_left_alone():
    model = network()
    unused = nn.Parameter(torch.ones(3, dtype=torch.float64))
    opt = SAM(torch.optim.SGD([*model.parameters(), unused], lr=0.1), rho=0.5)
    for x, y in batches(3):
        opt.step(closure_of(model, opt, x, y))
    assert torch.equal(unused, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": -0.1}, "rho: expected a finite number >= 0, found -0.1"),
        ({"rho": float("inf")}, "rho: expected a finite number >= 0, found inf"),
        ({"rho": float("nan")}, "rho: expected a finite number >= 0, found nan"),
        ({"rho": "big"}, "rho: expected a finite number >= 0, found 'big'"),
        ({"gamma": -1.0}, "gamma: expected a finite number >= 0, found -1.0"),
        ({"rho": lambda step: -step - 1.0}, "rho: expected a finite number >= 0, found -1.0 at global step 0"),
    ],
)
def test_refuses_hyperparameters_out_of_range(options, message):
    with pytest.raises(InputError) as caught:
        SAM(torch.optim.SGD(network().parameters(), lr=0.1), **options)
    assert str(caught.value) == message


def test_refuses_missing_arguments_and_gradients():
    model = network()
    with pytest.raises(InputError, match="base: expected a torch optimizer that takes plain steps, found generator"):
        SAM(model.parameters())
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(InputError, match="step: expected a closure"):
        opt.step()
    with pytest.raises(
        RuntimeError, match=r"no parameter has a gradient: call loss.backward\(\) first, in step's closure too"
    ):
        opt.step(lambda: torch.tensor(0.0))
