"""A chain and its center in one process, against recursions in numpy."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lsam_hpc import InputError
from lsam_hpc.optim import SAM, LocalCenter, LocalLSAM
from tests.helpers.problems import Bowl, batches, closure_of, flat, network


def chain(model, center, /, lr=0.1, momentum=0.0, **options):
    return LocalLSAM(torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum), center, **options)


@pytest.mark.parametrize("coupling", ["elastic", "kernel", "restart"])
def test_pull_0_equals_sam_to_1e_12(coupling):
    # SAM remains if restart never resets the chain (period 1000) and kernel has no force (stiffness 0).
    ours, plain = network(), network()
    center = LocalCenter(flat(ours))
    options = {"coupling": coupling, "stiffness": 0.0, "period": 3 if coupling != "restart" else 1000}
    opt = chain(ours, center, momentum=0.9, rho=0.2, pull=0.0, **options)
    sam = SAM(torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9), rho=0.2)
    start = flat(ours)
    for x, y in batches(30):
        opt.step(closure_of(ours, opt, x, y))
        sam.step(closure_of(plain, sam, x, y))
        torch.testing.assert_close(flat(ours), flat(plain), rtol=0, atol=1e-12)
    assert torch.equal(center.vector, start)


@pytest.mark.parametrize("period", [1, 3])
def test_elastic_equals_easgd(period):
    lr, pull, a = 0.1, 0.3, 2.0
    models = [Bowl([1.0, -2.0], a), Bowl([3.0, 0.5], a, b=1.0)]
    center = LocalCenter(torch.zeros(2, dtype=torch.float64))
    # The chains start far from the center: switch the delta filter off.
    opts = [chain(m, center, lr, rho=0.0, pull=pull, period=period, max_delta_ratio=math.inf) for m in models]
    xs, y = [m.value for m in models], np.zeros(2)
    for step in range(1, 25):
        for i, (m, opt) in enumerate(zip(models, opts, strict=True)):
            opt.step(m.closure(opt))
            xs[i] = xs[i] - lr * a * (xs[i] - m.b)
            if step % period == 0:
                delta = pull * (xs[i] - y)
                y, xs[i] = y + delta, xs[i] - delta
            np.testing.assert_allclose(m.value, xs[i], rtol=0, atol=1e-12)
        np.testing.assert_allclose(center.vector, y, rtol=0, atol=1e-12)


def test_kernel_pulls_at_every_step_toward_the_center_that_was_read():
    lr, pull, stiffness, period, a = 0.1, 0.25, 0.7, 3, 2.0
    models = [Bowl([1.0, -2.0], a), Bowl([3.0, 0.5], a, b=1.0)]
    center = LocalCenter(torch.ones(2, dtype=torch.float64))
    opts = [
        chain(m, center, lr, rho=0.0, coupling="kernel", pull=pull, period=period, stiffness=stiffness) for m in models
    ]
    xs, y, read = [m.value for m in models], np.ones(2), [np.ones(2), np.ones(2)]
    for step in range(1, 25):
        for i, (m, opt) in enumerate(zip(models, opts, strict=True)):
            opt.step(m.closure(opt))
            xs[i] = xs[i] - lr * (a * (xs[i] - m.b) + stiffness * (xs[i] - read[i]))
            if step % period == 0:
                y = y + pull * (xs[i] - read[i])
                read[i] = y
            np.testing.assert_allclose(m.value, xs[i], rtol=0, atol=1e-12)
        np.testing.assert_allclose(center.vector, y, rtol=0, atol=1e-12)


def test_the_kernel_force_is_taken_at_the_sample_not_at_the_perturbed_point():
    # On the bowl e is parallel to x, so the gradient at x + e is a (x + rho x / |x|).
    lr, stiffness, a, rho = 0.1, 0.7, 2.0, 0.3
    model = Bowl([1.0, -2.0], a)
    center = LocalCenter(torch.tensor([0.5, 0.5], dtype=torch.float64))
    opt = chain(model, center, lr, rho=rho, gamma=0.0, coupling="kernel", pull=0.1, period=1000, stiffness=stiffness)
    x = model.value
    for _ in range(10):
        opt.step(model.closure(opt))
        x = x - lr * (a * (x + rho * x / np.linalg.norm(x)) + stiffness * (x - 0.5))
        np.testing.assert_allclose(model.value, x, rtol=0, atol=1e-12)


def test_restart_takes_the_gap_against_the_center_that_the_chain_started_from():
    # Two chains make the same move d from the same center, with pull 1/2: y must move by d, not by less.
    models = [Bowl([1.0]), Bowl([1.0])]
    center = LocalCenter(torch.ones(1, dtype=torch.float64))
    opts = [chain(m, center, 0.1, rho=0.0, coupling="restart", pull=0.5, period=1) for m in models]
    for m, opt in zip(models, opts, strict=True):
        opt.step(m.closure(opt))
    assert center.vector.item() == pytest.approx(0.9, abs=1e-12)
    # The first chain restarts from the center after its own add, the second from the center after both adds.
    assert models[0].value[0] == pytest.approx(0.95, abs=1e-12)
    assert models[1].value[0] == pytest.approx(0.9, abs=1e-12)


def test_one_chain_with_restart_and_pull_1_equals_sam():
    ours, plain = network(), network()
    opt = chain(ours, LocalCenter(flat(ours)), rho=0.2, coupling="restart", pull=1.0, period=2)
    sam = SAM(torch.optim.SGD(plain.parameters(), lr=0.1), rho=0.2)
    for x, y in batches(30):
        opt.step(closure_of(ours, opt, x, y))
        sam.step(closure_of(plain, sam, x, y))
    torch.testing.assert_close(flat(ours), flat(plain), rtol=0, atol=1e-12)


def test_center_momentum_is_heavy_ball_on_the_deltas():
    lr, pull, mu = 0.1, 0.2, 0.6
    model = Bowl([1.0, -3.0])
    center = LocalCenter(torch.zeros(2, dtype=torch.float64))
    opt = chain(model, center, lr, rho=0.0, pull=pull, period=1, center_momentum=mu)
    x, y, v = model.value, np.zeros(2), np.zeros(2)
    for _ in range(20):
        opt.step(model.closure(opt))
        x = x - lr * x
        delta = pull * (x - y)
        v = mu * v + delta
        y, x = y + v, x - delta
        np.testing.assert_allclose(model.value, x, rtol=0, atol=1e-12)
        np.testing.assert_allclose(center.vector, y, rtol=0, atol=1e-12)


def test_noise_has_variance_2_lr_t():
    # Without a force each step adds N(0, 2 lr T). 20,000 independent coordinates; sample variance within 4 sigma.
    lr, temperature, count = 0.05, 0.3, 20_000
    model = Bowl([0.0] * count, a=0.0)
    center = LocalCenter(torch.zeros(count, dtype=torch.float64))
    opt = chain(model, center, lr, rho=0.0, pull=0.0, temperature=temperature, seed=3)
    opt.step(model.closure(opt))
    expected = 2 * lr * temperature
    assert abs(model.value.var() - expected) < 4 * expected * math.sqrt(2 / count)
    assert abs(model.value.mean()) < 4 * math.sqrt(expected / count)


def test_noise_uses_the_learning_rate_of_each_group_and_skips_frozen_parameters():
    count, temperature = 20_000, 0.3
    params = [nn.Parameter(torch.zeros(count, dtype=torch.float64)) for _ in range(3)]
    params[2].requires_grad_(False)
    groups = [{"params": [p], "lr": lr} for p, lr in zip(params, (0.1, 0.4, 0.1), strict=True)]
    base = torch.optim.SGD(groups, lr=0.1)
    opt = LocalLSAM(
        base, LocalCenter(torch.zeros(3 * count, dtype=torch.float64)), rho=0.0, pull=0.0, temperature=temperature
    )

    def closure():
        opt.zero_grad()
        loss = 0 * (params[0].sum() + params[1].sum())
        loss.backward()
        return loss

    opt.step(closure)
    for p, lr in zip(params[:2], (0.1, 0.4), strict=True):
        expected = 2 * lr * temperature
        assert abs(p.detach().var().item() - expected) < 4 * expected * math.sqrt(2 / count)
    assert not params[2].any()


def test_warns_if_the_noise_makes_no_exact_langevin_steps():
    model = Bowl([0.0])
    with pytest.warns(UserWarning, match="only with SGD without momentum, not with this SGD"):
        chain(model, LocalCenter(torch.zeros(1, dtype=torch.float64)), momentum=0.9, temperature=0.1)


def test_hyperparameters_may_be_callables_of_the_total_step():
    model = Bowl([1.0])
    center = LocalCenter(torch.zeros(1, dtype=torch.float64))
    records = []
    opt = chain(
        model,
        center,
        rho=lambda t: 0.1 * t,
        pull=lambda t: 0.5 if t < 6 else 0.0,
        period=lambda t: 1 if t < 4 else 2,
        on_exchange=records.append,
    )
    for _ in opt.steps(10):
        opt.step(model.closure(opt))
    assert [r.step for r in records] == [1, 2, 3, 4, 6, 8, 10]
    assert [r.delta_norm == 0 for r in records] == [False] * 5 + [True] * 2


def test_rejects_a_delta_that_is_not_finite_and_restarts_from_the_center():
    model = Bowl([1.0, 1.0])
    center = LocalCenter(torch.tensor([0.5, 0.25], dtype=torch.float64))
    opt = chain(model, center, momentum=0.9, rho=0.0, pull=0.5, period=1)
    opt.step(model.closure(opt))
    with torch.no_grad():
        model.x.fill_(math.nan)
    before = center.vector.clone()
    opt.step(model.closure(opt))
    assert torch.equal(center.vector, before)
    assert torch.equal(model.x.detach(), before)
    assert opt.stats()["refused"] == 1
    opt.step(model.closure(opt))
    assert torch.isfinite(model.x).all()
    assert opt.stats()["refused"] == 1


def test_a_rejection_resets_the_statistics_and_the_last_gradient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    start = torch.cat([flat(model), model[1].running_mean, model[1].running_var])
    opt = chain(model, LocalCenter(start), pull=0.5, period=1, ascent="dp-sat", model=model)
    x = torch.randn(16, 4, dtype=torch.float64)

    def closure():
        opt.zero_grad()
        loss = (model(x) ** 2).mean()
        loss.backward()
        return loss

    opt.step(closure)
    x[0, 0] = math.inf
    opt.step(closure)
    assert opt.stats()["refused"] == 1
    assert torch.isfinite(model[1].running_mean).all()
    assert not opt.last.params
    x[0, 0] = 0
    for _ in range(5):
        opt.step(closure)
    assert opt.stats()["refused"] == 1
    assert torch.isfinite(flat(model)).all()


def test_the_kernel_force_does_not_enter_the_stale_ascent():
    model = Bowl([1.0, -2.0], 2.0)
    center = LocalCenter(torch.full((2,), 9.0, dtype=torch.float64))
    opt = chain(model, center, rho=0.3, coupling="kernel", pull=0.0, period=1000, stiffness=5.0, ascent="dp-sat")
    x = model.value
    opt.step(model.closure(opt))
    np.testing.assert_allclose(opt.last.grads[0], 2 * x, rtol=0, atol=1e-12)


def test_the_center_context_of_a_submodule_restores_the_whole_model():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double()
    start = torch.cat([flat(model), model[1].running_mean + 1, model[1].running_var])
    opt = chain(model, LocalCenter(start), model=model)
    with opt.center(model[2]):
        assert model[1].running_mean[0] == 1
    assert model[1].running_mean[0] == 0
    (model(torch.randn(8, 4, dtype=torch.float64)) ** 2).mean().backward()
    opt.perturb()
    for wrong in (lambda: opt.center(model).__enter__(), lambda: opt.load_state_dict({})):
        with pytest.raises((RuntimeError, InputError), match=r"perturbed|expected the state"):
            wrong()


def test_refuses_a_pair():
    with pytest.raises(InputError, match="pair: expected with SAM only"):
        chain(Bowl([1.0]), LocalCenter(torch.zeros(1, dtype=torch.float64)), pair=object())


def test_counts_staleness_as_updates_by_others_between_read_and_add():
    models = [Bowl([1.0]), Bowl([1.0])]
    center = LocalCenter(torch.zeros(1, dtype=torch.float64))
    records = []
    first = chain(models[0], center, coupling="kernel", pull=0.5, period=1, on_exchange=records.append)
    second = chain(models[1], center, coupling="kernel", pull=0.5, period=1)
    first.step(models[0].closure(first))
    for _ in range(3):
        second.step(models[1].closure(second))
    first.step(models[0].closure(first))
    assert [r.staleness for r in records] == [0, 3]
    assert first.stats()["staleness_max"] == 3


def test_center_context_holds_y_and_restores_x_to_the_bit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    data = [torch.randn(64, 4) * 3 + 1 for _ in range(4)]
    center = LocalCenter(torch.randn(sum(p.numel() for p in model.parameters())))
    opt = chain(model, center, pull=0.1)
    model(data[0])
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def use_it():
        with opt.center(model, data) as at_center:
            assert torch.equal(flat(at_center), center.vector)
            # The statistics are those of the first layer's output over the data, with the parameters at y.
            out = torch.cat([model[0](batch) for batch in data])
            torch.testing.assert_close(model[1].running_mean, out.mean(0), rtol=1e-5, atol=1e-5)
            with torch.no_grad():
                model[1].running_mean.fill_(7)
            model.eval()
            raise LookupError("in the middle of an evaluation")

    model[2].eval()
    modes = [m.training for m in model.modules()]
    with pytest.raises(LookupError):
        use_it()
    assert [m.training for m in model.modules()] == modes
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert model[1].momentum == 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coupling": "loose"}, "coupling: expected one of elastic, kernel, restart, found 'loose'"),
        ({"period": 0}, "period: expected a whole number of steps >= 1, found 0"),
        ({"period": 1.5}, "period: expected a whole number of steps >= 1, found 1.5"),
        ({"pull": -1.0}, "pull: expected a finite number >= 0, found -1.0"),
        ({"temperature": -1.0}, "temperature: expected a finite number >= 0, found -1.0"),
        ({"stiffness": math.nan}, "stiffness: expected a finite number >= 0, found nan"),
        ({"center_momentum": 1.0}, "center_momentum: expected a number >= 0 and < 1, found 1.0"),
    ],
)
def test_refuses_hyperparameters_out_of_range(options, message):
    with pytest.raises(InputError) as caught:
        chain(Bowl([1.0]), LocalCenter(torch.zeros(1, dtype=torch.float64)), **options)
    assert str(caught.value) == message


def test_refuses_a_base_that_is_no_optimizer():
    with pytest.raises(InputError, match="base: expected a torch optimizer that takes plain steps, found Linear"):
        LocalLSAM(nn.Linear(1, 1), LocalCenter(torch.zeros(2)))


def test_refuses_a_center_of_another_size_and_new_groups():
    model = Bowl([1.0, 2.0])
    with pytest.raises(
        InputError, match="center: expected 2 elements, one per parameter and BatchNorm statistic, found 3"
    ):
        chain(model, LocalCenter(torch.zeros(3, dtype=torch.float64)))
    opt = chain(model, LocalCenter(torch.zeros(2, dtype=torch.float64)))
    with pytest.raises(InputError, match="add_param_group: expected before LSAM is made"):
        opt.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


@pytest.mark.parametrize("coupling", ["elastic", "kernel", "restart"])
def test_the_center_s_batchnorm_statistics_are_the_average_of_the_chains(coupling):
    # Two chains at lr 0 on data with different means: each keeps its statistics, and y's approach the average, up to
    # about one pull toward the chain that added last.
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).double() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    start = torch.cat([flat(models[0]), models[0][1].running_mean, models[0][1].running_var])
    center = LocalCenter(start)
    opts = [chain(m, center, lr=0.0, coupling=coupling, pull=0.02, period=1, model=m) for m in models]
    data = [torch.randn(64, 4, dtype=torch.float64) + shift for shift in (0, 5)]
    for _ in range(300):
        for model, opt, x in zip(models, opts, data, strict=True):

            def closure(model=model, opt=opt, x=x):
                opt.zero_grad()
                loss = (model(x) ** 2).mean()
                loss.backward()
                return loss

            opt.step(closure)
    statistics = [(m[1].running_mean.clone(), m[1].running_var.clone()) for m in models]
    assert not torch.allclose(statistics[0][0], statistics[1][0], atol=0.1)
    with opts[0].center(models[0]):
        for kind, value in enumerate((models[0][1].running_mean, models[0][1].running_var)):
            torch.testing.assert_close(value, (statistics[0][kind] + statistics[1][kind]) / 2, rtol=0.03, atol=0.03)
        assert torch.equal(models[0][0].weight, models[1][0].weight)
    assert torch.equal(models[0][1].running_mean, statistics[0][0])
