"""What is shown of an exchange is what the chain and its center were, and showing it changes nothing."""

import numpy as np
import pytest
import torch

from lsam_hpc.optim.center import LocalCenter
from lsam_hpc.optim.hyper import COUPLINGS
from lsam_hpc.optim.lsam import LSAM
from tests.optim.test_overlap import Late


class Keeper:
    """Keeps copies of what it is shown."""

    def __init__(self, every=1):
        self.every, self.seen = every, []

    def wants(self, state, step):
        return step % self.every == 0

    def see(self, step, version, states):
        self.seen.append((step, version, {name: v.clone() for name, v in states.items()}))


def train(coupling, witness, runner=None, steps=24, batch_norm=False, **options):
    """Train a chain; return its states, by step: x before the step, x at the ascent, x after it, and the center."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(3, 4), *([torch.nn.BatchNorm1d(4)] if batch_norm else []), torch.nn.Linear(4, 1)]
    model = torch.nn.Sequential(*layers).double()
    params = list(model.parameters())
    flat = lambda: torch.cat([p.detach().reshape(-1) for p in params]).clone()  # noqa: E731
    statistics = [model[1].running_mean, model[1].running_var] if batch_norm else []
    center = LocalCenter(torch.cat([flat(), *statistics]))
    data = torch.randn(8, 3, dtype=torch.float64)
    opt = LSAM(torch.optim.SGD(params, lr=0.1), center, rho=0.1, pull=0.3, period=4, coupling=coupling,
               runner=runner, witness=witness, model=model if batch_norm else None, **options)  # fmt: skip
    found = []

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
        found.append((visited[0], visited[-1], flat(), y))
        if runner:
            center.add(torch.ones_like(center.vector) * 1e-3)  # another chain, between staging and exchange
            while runner.jobs:
                runner.do()
    opt.drain()
    return found, flat(), opt


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_shown_are_the_sample_the_center_and_the_ascent(coupling, batch_norm):
    keeper = Keeper()
    found, _, _ = train(coupling, keeper, Late(), batch_norm=batch_norm)
    assert [step for step, _, _ in keeper.seen] == [4, 8, 12, 16, 20, 24]
    for step, version, states in keeper.seen:
        before, ascended, after, _ = found[step - 1]
        size = len(before)
        # A result moves the sample only in a later step here, so that `after` is what was staged.
        torch.testing.assert_close(states["sample"], after, rtol=0, atol=0)
        torch.testing.assert_close(states["perturbation"], ascended - before, rtol=0, atol=0)
        assert float(states["perturbation"].norm()) == pytest.approx(0.1, rel=1e-9)
        assert all(len(v) == size for v in states.values())
        # Elastic reads at the exchange; the others' gap is against the center that they read at the one before.
        reads = {"elastic": step, "kernel": step - 4, "restart": step - 4}[coupling]
        updates = reads + reads // 4 - (coupling == "elastic")
        assert version == updates
    versions = [v for _, v, _ in keeper.seen]
    assert len(set(versions)) == len(versions)


def test_the_center_shown_is_the_one_that_the_gap_was_taken_against():
    keeper, records = Keeper(), []
    train("elastic", keeper, Late(), observer=records.append)
    for (_, _, states), record in zip(keeper.seen, records, strict=True):
        gap = states["sample"] - states["center"]
        assert record.center_distance == pytest.approx(float(gap.norm()), rel=1e-12)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("coupling", COUPLINGS)
def test_a_chain_that_is_seen_goes_as_one_that_is_not(coupling, late):
    runs = [train(coupling, witness, Late() if late else None) for witness in (None, Keeper())]
    for (_, _, a, y), (_, _, b, z) in zip(runs[0][0], runs[1][0], strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(y, z)


def test_the_ascent_is_staged_only_when_it_is_wanted():
    keeper = Keeper(every=8)
    train("elastic", keeper)
    assert ["perturbation" in states for _, _, states in keeper.seen] == [False, True] * 3


def test_stale_ascents_are_shown_too():
    keeper = Keeper()
    train("elastic", keeper, ascent="stale")
    assert all(float(s["perturbation"].norm()) == pytest.approx(0.1, rel=1e-9) for _, _, s in keeper.seen)


def test_the_end_is_shown():
    keeper = Keeper()
    _, x, opt = train("elastic", keeper, steps=6)
    opt.show()
    step, version, states = keeper.seen[-1]
    assert (step, version) == (6, 1)
    np.testing.assert_array_equal(states["sample"], x)
    np.testing.assert_array_equal(states["center"], opt._coupler.center.vector)
