"""SAM in phases, without a closure, and in loops that accumulate, clip, freeze and scale gradients."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from lsam_hpc import SAM, InputError
from tests.helpers.problems import batches, closure_of, flat, network, step_on

PASSES = {"sam": 2, "dp-sat": 1, "sampa": 2, "asyncsam": 2, "msam": 1, "gam": 4}  # per step, after the first


def backward(model, x, y, part=1.0):
    loss = part * functional.cross_entropy(model(x), y)
    loss.backward()
    return loss


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, **options)


@pytest.mark.parametrize("ascent", ["sam", "dp-sat"])
def test_phases_equal_a_step_with_a_closure(ascent):
    ours, theirs = network(), network()
    phased, closed = SAM(sgd(ours), 0.2, ascent=ascent), SAM(sgd(theirs), 0.2, ascent=ascent)
    for x, y in batches(10):
        phased.zero_grad()
        if ascent == "sam":
            backward(ours, x, y)
        phased.perturb()
        backward(ours, x, y)
        phased.restore()
        phased.update()
        closed.step(closure_of(theirs, closed, x, y))
    assert torch.equal(flat(ours), flat(theirs))


def test_perturb_clears_the_gradients():
    model = network()
    opt = SAM(sgd(model), 0.2)
    backward(model, *next(batches(1)))
    opt.perturb()
    assert all(p.grad is None for p in model.parameters())


def test_calls_in_a_wrong_order_say_what_to_call():
    model = network()
    opt = SAM(sgd(model), 0.2)
    x, y = next(batches(1))
    with pytest.raises(RuntimeError, match=r"no parameter has a gradient: call loss.backward\(\) first"):
        opt.perturb()
    with pytest.raises(RuntimeError, match=r"restore: the parameters are not perturbed: call perturb\(\) first"):
        opt.restore()
    with pytest.raises(RuntimeError, match=r"update: no parameter has a gradient: call loss.backward\(\) between"):
        opt.update()
    backward(model, x, y)
    opt.perturb()
    with pytest.raises(RuntimeError, match=r"perturb: the parameters are perturbed already: call restore\(\) first"):
        opt.perturb()
    with pytest.raises(RuntimeError, match=r"update: the parameters are still perturbed: call restore\(\) first"):
        opt.update()
    with pytest.raises(RuntimeError, match=r"state_dict: the parameters are perturbed: call restore\(\) first"):
        opt.state_dict()
    opt.restore()
    with pytest.raises(RuntimeError, match=r"update: no parameter has a gradient: call loss.backward\(\) between"):
        opt.update()
    parallel = SAM(sgd(network()), ascent="sampa")
    with pytest.raises(RuntimeError, match=r"perturb: the ascent sampa works by step\(closure\) only"):
        parallel.perturb()


def test_accumulation_over_micro_batches_equals_the_whole_batch():
    ours, theirs = network(), network()
    phased, closed = SAM(sgd(ours), 0.2), SAM(sgd(theirs), 0.2)
    for x, y in batches(10):
        for move in (phased.perturb, phased.restore):
            for part_x, part_y in zip(x.split(4), y.split(4), strict=True):
                backward(ours, part_x, part_y, 1 / 4)
            move()
        phased.update()
        phased.zero_grad()
        closed.step(closure_of(theirs, closed, x, y))
    torch.testing.assert_close(flat(ours), flat(theirs), rtol=0, atol=1e-12)


def test_clipping_after_restore_bounds_the_step():
    model = network()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=1.0), 0.2)
    x, y = next(batches(1))
    before = flat(model)
    backward(model, x, y)
    opt.perturb()
    backward(model, x, y)
    opt.restore()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    opt.update()
    assert (flat(model) - before).norm() == pytest.approx(1e-3, rel=1e-4)


def test_frozen_parameters_stay_until_they_are_unfrozen():
    model = network()
    model[0].requires_grad_(False)
    opt = SAM(sgd(model), 0.2)
    frozen = model[0].weight.detach().clone()
    for step, (x, y) in enumerate(batches(6)):
        if step == 3:
            assert torch.equal(model[0].weight, frozen)
            model[0].requires_grad_(True)
        opt.step(closure_of(model, opt, x, y))
    assert not torch.equal(model[0].weight, frozen)


def test_parameters_that_only_one_pass_uses_are_restored():
    # The second pass uses another branch: the parameters that the first pass perturbed must still be restored.
    model = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)]).double()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), 0.2)
    x, y = next(batches(1))
    first = model[0].weight.detach().clone()
    functional.cross_entropy(model[0](x), y).backward()
    opt.perturb()
    assert not torch.equal(model[0].weight, first)
    functional.cross_entropy(model[1](x), y).backward()
    opt.restore()
    opt.update()
    assert torch.equal(model[0].weight, first)


def test_refuses_sparse_gradients_and_complex_parameters():
    table = nn.Embedding(10, 3, sparse=True)
    opt = SAM(torch.optim.SGD(table.parameters(), lr=0.1))
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(InputError, match=r"gradients: expected dense gradients, found torch.sparse_coo .*sparse=False"):
        opt.perturb()
    with pytest.raises(
        InputError, match=r"parameters: expected real parameters, found torch.complex64 of shape \(2,\)"
    ):
        SAM(torch.optim.SGD([nn.Parameter(torch.zeros(2, dtype=torch.complex64))], lr=0.1))


def test_refuses_a_base_optimizer_that_is_in_use():
    base = sgd(network())
    opt = SAM(base)
    with pytest.raises(InputError, match="base: expected an optimizer that no other SAM wraps, found one that"):
        SAM(base)
    with pytest.raises(InputError, match="base: expected a torch optimizer that takes plain steps, found SAM"):
        SAM(opt)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1, 0.9, foreach=True),
        lambda p: torch.optim.SGD(p, 0.1, 0.9, fused=True),
        lambda p: torch.optim.Adam(p, 0.01, foreach=True),
        lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
        lambda p: torch.optim.AdamW(p, 0.01, fused=True),
    ],
    ids=["sgd-foreach", "sgd-fused", "adam-foreach", "adamw-foreach", "adamw-fused"],
)
def test_foreach_and_fused_bases_agree_with_the_plain_one(make):
    ours, plain = network(), network()
    opt = SAM(make(ours.parameters()), 0.2)
    kind = type(opt.base)
    options = {"lr": opt.param_groups[0]["lr"], "foreach": False}
    base = (
        kind(plain.parameters(), momentum=0.9, **options)
        if kind is torch.optim.SGD
        else kind(plain.parameters(), **options)
    )
    other = SAM(base, 0.2)
    for x, y in batches(10):
        opt.step(closure_of(ours, opt, x, y))
        other.step(closure_of(plain, other, x, y))
    torch.testing.assert_close(flat(ours), flat(plain), rtol=0, atol=1e-10)


@pytest.mark.slow("torch's compiler takes 20 s")
def test_a_compiled_model_trains_like_the_plain_one():
    ours, plain = network(torch.float32), network(torch.float32)
    compiled = torch.compile(ours)
    opt, other = SAM(sgd(ours), 0.2, model=compiled), SAM(sgd(plain), 0.2)
    for x, y in batches(5, torch.float32):
        opt.step(closure_of(compiled, opt, x, y))
        other.step(closure_of(plain, other, x, y))
    torch.testing.assert_close(flat(ours), flat(plain), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("ascent", ["sam", "dp-sat"])
def test_batchnorm_statistics_update_once_per_step(ascent):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    opt = SAM(sgd(model), 0.5, ascent=ascent, model=model)
    reference = copy.deepcopy(model)
    for x, y in batches(4):
        if ascent == "sam":
            reference.load_state_dict(model.state_dict())
            reference(x)
        opt.step(closure_of(model, opt, x, y))
        if ascent == "sam":
            assert torch.equal(model[1].running_mean, reference[1].running_mean)
            assert torch.equal(model[1].running_var, reference[1].running_var)
    assert model[1].num_batches_tracked == 4
    assert model[1].track_running_stats


def test_batchnorm_statistics_of_sampa_update_once_per_step_at_the_look_ahead_point():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.3), 0.5, ascent="sampa", model=model)
    x, y = next(batches(1))
    step_on(model, opt, x, y)
    reference = copy.deepcopy(model)
    with torch.no_grad():
        for p, g in zip(reference.parameters(), opt.last.grads, strict=True):
            p.sub_(0.3 * g)
    step_on(model, opt, x, y)
    reference(x)
    torch.testing.assert_close(model[1].running_mean, reference[1].running_mean, rtol=0, atol=1e-12)
    for _ in range(2):
        step_on(model, opt, x, y)
    assert model[1].num_batches_tracked == 4


def test_batchnorm_tracks_again_after_an_exception():
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).double()
    opt = SAM(sgd(model), 0.5, model=model)
    calls = []

    def closure():
        calls.append(model[1].track_running_stats)
        if len(calls) == 2:
            raise MemoryError
        return backward(model, *next(batches(1)))

    with pytest.raises(MemoryError):
        opt.step(closure)
    assert calls == [True, False]
    assert model[1].track_running_stats


class Poisoned(torch.autograd.Function):
    """The identity, whose gradient overflows."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g * float("inf")


def test_an_overflow_in_the_first_step_does_not_reach_batchnorm():
    # GradScaler's large initial scale often makes the first step overflow.
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    opt = SAM(sgd(model), 0.2, ascent="sampa", model=model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1e38)
    for x, y in batches(3, torch.float32):

        def closure(batch):
            opt.zero_grad()
            loss = 1e4 * functional.cross_entropy(model(batch[0]), batch[1])
            scaler.scale(loss).backward()
            return loss

        opt.step(closure, scaler, batch=(x, y))
        scaler.update()
    assert torch.isfinite(model[1].running_mean).all()
    assert torch.isfinite(flat(model)).all()


@pytest.mark.parametrize("ascent", PASSES)
@pytest.mark.parametrize("failing", ["closure", "base"])
def test_the_step_after_a_failed_one_is_unscaled(ascent, failing, monkeypatch):
    model, plain = network(torch.float32), network(torch.float32)
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), 0.2, ascent=ascent)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    x, y = next(batches(1, torch.float32))
    calls, failing_pass = [], 2 if ascent in ("sam", "gam", "asyncsam") else 1

    def closure(batch):
        calls.append(1)
        opt.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        if failing == "closure" and len(calls) == failing_pass:
            raise MemoryError
        return loss

    with monkeypatch.context() as patch:
        if failing == "base":
            patch.setattr(opt.base, "step", lambda: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            opt.step(closure, scaler, batch=(x, y))
    calls.extend([1, 1])
    opt.step(closure, scaler, batch=(x, y))
    scaler.update()
    # The failed step may leave a gradient for the next ascent, so only the size of the step is checked.
    assert 0 < (flat(model) - flat(plain)).norm() < 1


def test_gradients_of_one_pass_are_unscaled_once_under_either_optimizer():
    lengths = []
    for name in ("none", "opt", "base"):
        model = network(torch.float32)
        opt = SAM(torch.optim.SGD(model.parameters(), lr=1.0), 0.2, ascent="dp-sat")
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
        x, y = next(batches(1, torch.float32))
        before = flat(model)
        opt.perturb(scaler)
        scaler.scale(functional.cross_entropy(model(x), y)).backward()
        opt.restore()
        if name != "none":
            scaler.unscale_(opt if name == "opt" else opt.base)
        opt.update(scaler)
        scaler.update()
        lengths.append((flat(model) - before).norm().item())
    assert lengths[0] == lengths[1] == lengths[2]


def test_refuses_a_base_unscaled_before_the_ascent():
    model = network(torch.float32)
    opt, scaler = SAM(sgd(model), 0.2), torch.amp.GradScaler("cpu")
    x, y = next(batches(1, torch.float32))
    scaler.scale(functional.cross_entropy(model(x), y)).backward()
    scaler.unscale_(opt.base)
    with pytest.raises(RuntimeError, match=r"perturb: the scaler has unscaled opt\.base already"):
        opt.perturb(scaler)


@pytest.mark.parametrize("ascent", PASSES)
def test_a_scaler_without_overflow_changes_nothing(ascent):
    ours, plain = network(torch.float32), network(torch.float32)
    opt, other = SAM(sgd(ours), 0.2, ascent=ascent), SAM(sgd(plain), 0.2, ascent=ascent)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for x, y in batches(10, torch.float32):
        step_on(ours, opt, x, y, scaler)
        scaler.update()
        step_on(plain, other, x, y)
        assert torch.equal(opt.grad_norm, other.grad_norm) or opt.grad_norm.isnan()
    # Scaling by a power of two does not round.
    assert torch.equal(flat(ours), flat(plain))


@pytest.mark.parametrize(
    ("ascent", "bad"), [(ascent, bad) for ascent, passes in PASSES.items() for bad in range(1, passes + 1)]
)
def test_an_overflow_in_any_pass_skips_the_step_and_lowers_the_scale(ascent, bad):
    model = network(torch.float32)
    opt = SAM(sgd(model), 0.2, ascent=ascent)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def step(poison):
        calls = []
        x, y = next(batches(1, torch.float32))

        def closure(batch):
            calls.append(1)
            opt.zero_grad()
            out = model(x)
            loss = functional.cross_entropy(Poisoned.apply(out) if len(calls) == poison else out, y)
            scaler.scale(loss).backward()
            return loss

        opt.step(closure, scaler, batch=(x, y))
        scaler.update()

    step(0)
    before, momentum = flat(model), {k: v.clone() for k, v in opt.state[model[0].weight].items()}
    step(bad)
    assert torch.equal(flat(model), before)
    assert all(torch.equal(opt.state[model[0].weight][k], v) for k, v in momentum.items())
    assert scaler.get_scale() == 2.0**9
    step(0)
    assert torch.isfinite(flat(model)).all()
    assert not torch.equal(flat(model), before)
    assert opt.local_step == 3


def test_clipping_with_a_scaler_unscales_once():
    model = network(torch.float32)
    opt = SAM(torch.optim.SGD(model.parameters(), lr=1.0), 0.2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x, y = next(batches(1, torch.float32))
    before = flat(model)
    scaler.scale(functional.cross_entropy(model(x), y)).backward()
    opt.perturb(scaler)
    scaler.scale(functional.cross_entropy(model(x), y)).backward()
    opt.restore()
    scaler.unscale_(opt.base)
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    opt.update(scaler)
    scaler.update()
    assert (flat(model) - before).norm() == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_with_autocast_lowers_the_loss(dtype):
    model = network(torch.float32)
    opt = SAM(sgd(model), 0.05)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype is torch.float16)
    x, y = next(batches(1, torch.float32))
    losses = []
    for _ in range(60):

        def closure():
            opt.zero_grad()
            with torch.autocast("cpu", dtype):
                loss = functional.cross_entropy(model(x), y)
            scaler.scale(loss).backward()
            return loss.item()

        losses.append(opt.step(closure, scaler))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scaler.update()
    assert losses[-1] < 0.3 * losses[0]
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_a_refused_group_changes_nothing():
    model = network()
    opt = SAM(torch.optim.SGD(model[0].parameters(), lr=0.1), 0.2)
    with pytest.raises(InputError, match="rho: expected a finite number >= 0, found -1"):
        opt.add_param_group({"params": list(model[2].parameters()), "rho": -1})
    assert len(opt.param_groups) == 1
    opt.step(closure_of(model, opt, *next(batches(1))))


def test_groups_stay_those_of_the_base_after_it_loads_a_state():
    model = network()
    opt = SAM(sgd(model), 0.2)
    opt.base.load_state_dict(opt.base.state_dict())
    assert opt.param_groups is opt.base.param_groups
    assert opt.state is opt.base.state


def test_parameters_are_restored_when_the_look_ahead_fails():
    model = network()
    opt = SAM(
        torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[2].parameters()}], lr=0.1), ascent="sampa"
    )
    batch = next(batches(1))
    step_on(model, opt, *batch)
    before = flat(model)
    del opt.param_groups[1]["lr"]
    with pytest.raises(KeyError):
        step_on(model, opt, *batch)
    assert torch.equal(flat(model), before)
    assert not opt.perturbation.active


def test_parameters_that_changed_their_type_are_restored_exactly():
    model = network(torch.float32)
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), 0.2)
    opt.step(closure_of(model, opt, *next(batches(1, torch.float32))))
    model.double()
    with torch.no_grad():
        model[0].weight.add_(1e-12)
    before = flat(model)
    backward(model, *next(batches(1)))
    opt.perturb()
    opt.restore()
    assert torch.equal(flat(model), before)


def test_schedulers_count_steps_in_phases(recwarn):
    model = network()
    opt = SAM(sgd(model), 0.2)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, 1)
    x, y = next(batches(1))
    backward(model, x, y)
    opt.perturb()
    backward(model, x, y)
    opt.restore()
    opt.update()
    scheduler.step()
    assert not [w for w in recwarn if "lr_scheduler.step" in str(w.message)]


def test_a_deep_copy_is_independent():
    model = network()
    opt = SAM(sgd(model), 0.2)
    x, y = next(batches(1))
    opt.step(closure_of(model, opt, x, y))
    twin_model, twin = copy.deepcopy((model, opt))
    assert twin.param_groups is twin.base.param_groups
    opt.step(closure_of(model, opt, x, y))
    twin.step(closure_of(twin_model, twin, x, y))
    assert torch.equal(flat(model), flat(twin_model))


@pytest.mark.parametrize("named", [False, True])
def test_an_added_group_may_be_a_generator_of_parameters(named):
    model = network()
    layers = (model[0].named_parameters(), model[2].named_parameters()) if named else map(nn.Module.parameters, model)
    first, *_, last = layers
    opt = SAM(torch.optim.SGD(first, lr=0.1), 0.2)
    opt.add_param_group({"params": last})
    before = flat(model)
    x, y = next(batches(1))
    opt.step(closure_of(model, opt, x, y))
    assert (flat(model) != before).all()


def test_a_copy_behind_a_scheduler_takes_its_own_steps():
    model = network()
    opt = SAM(sgd(model), 0.2)
    torch.optim.lr_scheduler.StepLR(opt, 30)  # replaces opt.step by a function that steps this opt
    x, y = next(batches(1))
    before = flat(model)
    pickled = pickle.dumps((model, opt))
    for twin_model, twin in (copy.deepcopy((model, opt)), pickle.loads(pickled)):  # noqa: S301 - ours
        twin.step(closure_of(twin_model, twin, x, y))
        assert not torch.equal(flat(twin_model), before)
        assert torch.equal(flat(model), before)


@pytest.mark.parametrize("scaled", [False, True])
def test_rho_0_takes_the_base_step_in_one_pass(scaled):
    torch.manual_seed(0)
    model, calls = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), []
    plain = copy.deepcopy(model)
    x, y = torch.randn(8, 6), torch.randint(3, (8,))
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), rho=0.0, model=model)
    base = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0) if scaled else None

    def closure():
        calls.append(1)
        opt.zero_grad()
        loss = functional.cross_entropy(model(x), y)
        (scaler.scale(loss) if scaler else loss).backward()
        return loss

    for step in range(5):
        base.zero_grad()
        functional.cross_entropy(plain(x), y).backward()
        norm = torch.linalg.vector_norm(torch.cat([p.grad.ravel() for p in plain.parameters()]))
        base.step()
        opt.step(closure, scaler)
        if scaler:
            scaler.update()
        assert len(calls) == step + 1
        torch.testing.assert_close(opt.grad_norm, norm)
        assert opt.perturbation_norm == 0
    for ours, theirs in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0 if not scaled else 1e-5, atol=0 if not scaled else 1e-7)


def test_a_step_takes_two_passes_where_its_rho_is_not_0():
    model, calls = nn.Linear(3, 1), []
    x = torch.randn(4, 3)
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=lambda step: float(step > 0))

    def closure():
        calls.append(1)
        opt.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    opt.step(closure)
    assert len(calls) == 1
    opt.step(closure)
    assert len(calls) == 3
    assert opt.perturbation_norm > 0
    opt = SAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.0)
    opt.param_groups[0]["rho"] = 0.1
    opt.step(closure)
    assert len(calls) == 5


def test_step_without_a_closure_ends_a_step_in_phases():
    """As frameworks call it that compute the gradients themselves; hooks are called once."""
    model, other, calls = network(), network(), []
    opt, reference = (SAM(torch.optim.SGD(m.parameters(), lr=0.1), rho=0.2) for m in (model, other))
    opt.register_step_pre_hook(lambda *_: calls.append("step"))
    for x, y in batches(3):
        closure = closure_of(model, opt, x, y)
        with pytest.raises(InputError, match="expected a closure"):
            opt.step()
        closure()
        opt.perturb()
        with pytest.raises(RuntimeError, match="still perturbed"):
            opt.step()
        closure()
        opt.restore()
        opt.step()
        reference.step(closure_of(other, reference, x, y))
    assert torch.equal(flat(model), flat(other))
    assert opt.local_step == len(calls) - 6 == 3
