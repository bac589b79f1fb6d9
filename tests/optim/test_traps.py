"""Uses that would change the method silently are right, or refused in one line."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from lsam_hpc import SAM, InputError
from lsam_hpc.optim import LocalCenter, LocalLSAM
from lsam_hpc.optim.batchnorm import recalibrate
from lsam_hpc.optim.samples import sample_step
from lsam_hpc.options.ascent import ASCENTS
from tests.helpers.problems import batches, closure_of, flat, network, step_on

WITHOUT_CENTER = [ascent for ascent in ASCENTS if ascent != "center"]


def sgd(params, **options):
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, **options)


def test_a_scaler_must_be_given_to_the_step():
    model = network(torch.float32)
    opt, scaler = SAM(sgd(model.parameters()), 0.2), torch.amp.GradScaler("cpu")
    x, y = next(batches(1, torch.float32))
    before = flat(model)
    scaler.scale(functional.cross_entropy(model(x), y)).backward()

    def closure():
        opt.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        return loss

    with pytest.raises(InputError) as caught:
        scaler.step(opt, closure)
    assert str(caught.value) == (
        "step: expected opt.step(closure, scaler) with a scaler, found scaler.step(opt, closure)"
    )
    assert torch.equal(flat(model), before)
    opt.step(closure, scaler)  # the right call is not refused afterwards
    assert not torch.equal(flat(model), before)


@pytest.mark.parametrize(
    ("ascent", "reason"),
    [
        ("center", "expected center when LSAM is made, which then tracks the center, found it later"),
        ("msam", "expected a base optimizer with momentum for msam, found SGD without"),
        ("sma", "expected one of sam, dp-sat, asyncsam, sampa, msam, center, gam, found 'sma'"),
    ],
)
@pytest.mark.parametrize("chain", [False, True])
def test_an_ascent_that_is_set_later_is_checked(ascent, reason, chain):
    model = network()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    opt = LocalLSAM(base, LocalCenter(flat(model))) if chain else SAM(base)
    with pytest.raises(InputError) as caught:
        opt.ascent = ascent
    assert str(caught.value) == f"ascent: {reason}"
    x, y = next(batches(1))
    functional.cross_entropy(model(x), y).backward()
    opt.perturb()
    with pytest.raises(RuntimeError, match="ascent: the parameters are perturbed"):
        opt.ascent = "dp-sat"
    assert opt.ascent == "sam"


@pytest.mark.parametrize("ascent", WITHOUT_CENTER)
@pytest.mark.parametrize("metric", ["l2", "adaptive"])
def test_maximizing_equals_minimizing_the_negative(ascent, metric):
    up, down = network(), network()
    opts = [
        SAM(sgd(m.parameters(), weight_decay=0.01, maximize=m is up), 0.2, ascent=ascent, metric=metric)
        for m in (up, down)
    ]

    def closure_for(model, opt, sign):
        def closure(batch):
            opt.zero_grad()
            loss = sign * functional.cross_entropy(model(batch[0]), batch[1])
            loss.backward()
            return loss

        return closure

    for batch in batches(5):
        opts[0].step(closure_for(up, opts[0], -1), batch=batch)
        opts[1].step(closure_for(down, opts[1], 1), batch=batch)
        torch.testing.assert_close(flat(up), flat(down), rtol=0, atol=1e-14)
        torch.testing.assert_close(opts[0].perturbation_norm, opts[1].perturbation_norm, equal_nan=True)


def test_groups_may_differ_in_what_they_maximize():
    model = network()
    groups = [{"params": model[0].parameters(), "maximize": True}, {"params": model[2].parameters()}]
    opt = SAM(torch.optim.SGD(groups, lr=0.1), 0.2)
    x, y = next(batches(1))
    functional.cross_entropy(model(x), y).backward()
    grads = [p.grad.clone() for p in model.parameters()]
    before = [p.detach().clone() for p in model.parameters()]
    opt.perturb()
    norm = torch.cat([g.reshape(-1) for g in grads]).norm()
    for p, x0, g, sign in zip(model.parameters(), before, grads, (-1, -1, 1, 1), strict=True):
        torch.testing.assert_close(p.detach(), x0 + sign * 0.2 * g / norm, rtol=0, atol=1e-12)


@pytest.mark.parametrize("ascent", WITHOUT_CENTER)
def test_instance_norms_statistics_move_once_per_step(ascent):
    torch.manual_seed(0)
    model = nn.Sequential(nn.InstanceNorm1d(4, track_running_stats=True), nn.Flatten(), nn.Linear(20, 3)).double()
    opt = SAM(sgd(model.parameters()), 0.3, ascent=ascent, model=model)
    expected = torch.zeros(4, dtype=torch.float64)
    for _ in range(3):
        x, y = torch.randn(8, 4, 5, dtype=torch.float64), torch.randint(0, 3, (8,))
        step_on(model, opt, x, y)
        expected = 0.9 * expected + 0.1 * x.mean((0, 2))
        torch.testing.assert_close(model[0].running_mean, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d, nn.InstanceNorm1d])
def test_a_layer_in_evaluation_mode_normalizes_by_its_statistics_in_all_passes(layer):
    x, y = torch.randn(8, 4, 5, dtype=torch.float64), torch.randint(0, 3, (8,))
    ends = []
    for frozen in (False, True):
        torch.manual_seed(0)
        norm = layer(4, affine=True, track_running_stats=True)
        model = nn.Sequential(norm, nn.Flatten(), nn.Linear(20, 3)).double()
        norm.running_mean += 1
        norm.eval()
        step_on(model, SAM(sgd(model.parameters()), 0.3, model=model if frozen else None), x, y)
        ends.append(flat(model))
    assert torch.equal(ends[0], ends[1])


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.InstanceNorm1d])
def test_recalibrates_batch_and_instance_norm_to_the_mean_over_batches(kind):
    layer = kind(4, track_running_stats=True).double()
    data = [torch.randn(8, 4, 5, dtype=torch.float64) + 3 for _ in range(3)]
    recalibrate(nn.Sequential(layer), data)
    means = torch.stack([x.mean((0, 2)) for x in data]).mean(0)
    torch.testing.assert_close(layer.running_mean, means, rtol=0, atol=1e-12)
    assert layer.momentum == 0.1


@pytest.mark.parametrize("chain", [False, True])
def test_hooks_run_once_in_a_step_and_in_phases(chain):
    model, calls = network(), []
    SAM(sgd(network().parameters()))  # torch patches the class at its first optimizer
    base = sgd(model.parameters())
    opt = LocalLSAM(base, LocalCenter(flat(model)), 0.2) if chain else SAM(base, 0.2)
    opt.register_step_pre_hook(lambda *_: calls.append("before step"))
    opt.register_step_post_hook(lambda *_: calls.append("after step"))
    x, y = next(batches(1))
    opt.step(closure_of(model, opt, x, y))
    assert calls == ["before step", "after step"]
    calls.clear()
    functional.cross_entropy(model(x), y).backward()
    opt.perturb()
    functional.cross_entropy(model(x), y).backward()
    opt.restore()
    assert calls == []
    opt.update()
    assert calls == ["before step", "after step"]

    calls.clear()
    opt.register_state_dict_pre_hook(lambda _: calls.append("before state"))
    opt.register_state_dict_post_hook(lambda _, state: {**state, "more": 1})
    opt.register_load_state_dict_pre_hook(lambda _, state: calls.append(state["more"]))
    opt.register_load_state_dict_post_hook(lambda _: calls.append("after load"))
    opt.load_state_dict(opt.state_dict())
    assert calls == ["before state", 1, "after load"]


def test_an_optimizer_that_needs_a_closure_is_refused():
    with pytest.raises(InputError) as caught:
        SAM(torch.optim.LBFGS(network().parameters()))
    assert str(caught.value) == "base: expected an optimizer whose step needs no closure, found LBFGS"


def test_groups_added_to_the_base_take_part():
    model = network()
    opt, direct = SAM(torch.optim.SGD(model[0].parameters(), lr=0.1), 0.2), network()
    opt.base.add_param_group({"params": list(model[2].parameters())})
    other = SAM(torch.optim.SGD(direct[0].parameters(), lr=0.1), 0.2)
    other.add_param_group({"params": list(direct[2].parameters())})
    for x, y in batches(3):
        opt.step(closure_of(model, opt, x, y))
        other.step(closure_of(direct, other, x, y))
    assert torch.equal(flat(model), flat(direct))
    chain = LocalLSAM(torch.optim.SGD(model[0].parameters(), lr=0.1), LocalCenter(torch.zeros(56).double()))
    chain.base.add_param_group({"params": list(model[2].parameters())})
    with pytest.raises(InputError, match=r"^base\.add_param_group: expected before LSAM is made, which fixes the cent"):
        chain.step(closure_of(model, chain, *next(batches(1))))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_are_warned_about_and_their_real_norm_is_reported(dtype):
    model = network().to(dtype)
    with pytest.warns(UserWarning, match=f"parameters: x \\+ e is rounded to {dtype}"):
        opt = SAM(sgd(model.parameters()), 0.05)
    x, y = next(batches(1, dtype))
    before = flat(model).double()
    functional.cross_entropy(model(x), y).backward()
    opt.perturb()
    torch.testing.assert_close(
        opt.perturbation_norm.double(), (flat(model).double() - before).norm(), rtol=1e-5, atol=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SAM(sgd(network().parameters()), 0.05)


@pytest.mark.parametrize("same", [False, True])
def test_all_passes_can_draw_the_same_random_numbers(same):
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3)).double()
    opt, masks = SAM(sgd(model.parameters()), 0.2, ascent="gam", same_random_numbers=same), []
    model[0].register_forward_hook(lambda _, inputs, output: masks.append(output != 0))
    torch.manual_seed(0)
    for x, y in batches(2):
        opt.step(closure_of(model, opt, x, y))
    first, second = masks[:4], masks[4:]
    assert all(torch.equal(mask, first[0]) == same for mask in first[1:])
    assert all(torch.equal(mask, second[0]) == same for mask in second[1:])
    assert not torch.equal(first[0], second[0])


@pytest.mark.parametrize("same", [False, True])
def test_both_passes_on_samples_can_draw_the_same_random_numbers_and_the_loss_is_observed(same):
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3)).double()
    opt, drawn, seen = SAM(sgd(model.parameters()), 0.2, same_random_numbers=same), [], []
    opt.observe = seen.append
    model[0].register_forward_hook(lambda _, inputs, output: drawn.append(output != 0))
    x, y = next(batches(1))
    loss = sample_step(opt, lambda chosen: functional.cross_entropy(model(x), y, reduction="none"))
    assert torch.equal(*drawn) == same
    assert seen == [loss]


def test_an_update_without_a_step_is_refused():
    model = network()
    opt = SAM(sgd(model.parameters()), 0.2)
    x, y = next(batches(1))
    functional.cross_entropy(model(x), y).backward()
    with pytest.raises(RuntimeError, match=r"^update: no step has begun: call perturb\(\) first, after loss"):
        opt.update()


def test_a_step_with_nothing_to_move_along_has_norms_of_0():
    model = network()
    opt = SAM(sgd(model.parameters()), 0.2, ascent="dp-sat")
    opt.step(closure_of(model, opt, *next(batches(1))))
    assert (opt.perturbation_norm, opt.grad_norm) == (0, 0)
