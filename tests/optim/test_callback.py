"""A state callback receives the states of the chain and its center, and does not change the training."""

import numpy as np
import pytest
import torch

from lsam_hpc.optim.center import LocalCenter
from lsam_hpc.optim.lsam import LocalLSAM
from lsam_hpc.options.coupling import COUPLINGS
from tests.optim.test_overlap import Late


class Keeper:
    """Keeps copies of the states that it receives."""

    def __init__(self, every=1):
        self.every, self.seen = every, []

    def wants(self, state, step):
        return step % self.every == 0

    def on_states(self, step, version, states):
        self.seen.append((step, version, {name: v.clone() for name, v in states.items()}))


def train(coupling, state_callback, executor=None, steps=24, batch_norm=False, **options):
    """Train a chain; return (x before, x + e, x after, y) of each step, the final x, and the optimizer."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(3, 4), *([torch.nn.BatchNorm1d(4)] if batch_norm else []), torch.nn.Linear(4, 1)]
    model = torch.nn.Sequential(*layers).double()
    params = list(model.parameters())

    def flat():
        return torch.cat([p.detach().reshape(-1) for p in params]).clone()

    statistics = [model[1].running_mean, model[1].running_var] if batch_norm else []
    center = LocalCenter(torch.cat([flat(), *statistics]))
    data = torch.randn(8, 3, dtype=torch.float64)
    opt = LocalLSAM(
        torch.optim.SGD(params, lr=0.1),
        center,
        rho=0.1,
        pull=0.3,
        period=4,
        coupling=coupling,
        executor=executor,
        state_callback=state_callback,
        model=model if batch_norm else None,
        **options,
    )
    history = []

    def closure():
        visited.append(flat())
        opt.zero_grad()
        loss = model(data).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        visited = []
        y = center.vector.clone()
        opt.step(closure)
        history.append((visited[0], visited[-1], flat(), y))
        if executor:
            center.add(torch.ones_like(center.vector) * 1e-3)  # by another chain, between staging and exchange
            while executor.jobs:
                executor.do()
    opt.drain()
    return history, flat(), opt


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_receives_the_sample_the_center_and_the_perturbation(coupling, batch_norm):
    keeper = Keeper()
    history, _, _ = train(coupling, keeper, Late(), batch_norm=batch_norm)
    assert [step for step, _, _ in keeper.seen] == [4, 8, 12, 16, 20, 24]
    for step, version, states in keeper.seen:
        before, ascended, after, _ = history[step - 1]
        size = len(before)
        # With `Late` a result moves the sample only in a later step, so `after` is the staged sample.
        torch.testing.assert_close(states["sample"], after, rtol=0, atol=0)
        torch.testing.assert_close(states["perturbation"], ascended - before, rtol=0, atol=0)
        assert float(states["perturbation"].norm()) == pytest.approx(0.1, rel=1e-9)
        assert all(len(v) == size for v in states.values())
        # Elastic reads the center at this exchange; the others use the center read at the exchange before.
        reads = {"elastic": step, "kernel": step - 4, "restart": step - 4}[coupling]
        updates = reads + reads // 4 - (coupling == "elastic")
        assert version == updates
    versions = [v for _, v, _ in keeper.seen]
    assert len(set(versions)) == len(versions)


def test_the_initial_state_is_shown_with_the_center_that_the_chain_starts_from():
    keeper, center = Keeper(), LocalCenter(torch.arange(3.0))
    x = torch.nn.Parameter(torch.arange(3.0))
    opt = LocalLSAM(torch.optim.SGD([x], lr=0.1), center, pull=0.3, period=4, state_callback=keeper)
    center.add(torch.ones(3))  # by a chain that has begun already
    opt.show()
    ((step, version, states),) = keeper.seen
    assert (step, version) == (0, 0)
    for name in ("sample", "center"):
        torch.testing.assert_close(states[name], torch.arange(3.0), rtol=0, atol=0)


def test_receives_the_center_that_the_delta_was_computed_against():
    keeper, records = Keeper(), []
    train("elastic", keeper, Late(), on_exchange=records.append)
    for (_, _, states), record in zip(keeper.seen, records, strict=True):
        gap = states["sample"] - states["center"]
        assert record.center_distance == pytest.approx(float(gap.norm()), rel=1e-12)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_a_callback_does_not_change_the_training(coupling, late):
    runs = [train(coupling, state_callback, Late() if late else None) for state_callback in (None, Keeper())]
    for (_, _, a, y), (_, _, b, z) in zip(runs[0][0], runs[1][0], strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(y, z)


def test_the_perturbation_is_staged_only_if_the_callback_wants_it():
    keeper = Keeper(every=8)
    train("elastic", keeper)
    assert ["perturbation" in states for _, _, states in keeper.seen] == [False, True] * 3


def test_receives_the_perturbation_of_a_stale_ascent():
    keeper = Keeper()
    train("elastic", keeper, ascent="dp-sat")
    assert all(float(s["perturbation"].norm()) == pytest.approx(0.1, rel=1e-9) for _, _, s in keeper.seen)


def test_show_passes_the_final_states():
    keeper = Keeper()
    _, x, opt = train("elastic", keeper, steps=6)
    opt.show()
    step, version, states = keeper.seen[-1]
    assert (step, version) == (6, 1)
    np.testing.assert_array_equal(states["sample"], x)
    np.testing.assert_array_equal(states["center"], opt._coupler.center.vector)
