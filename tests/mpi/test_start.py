"""The synchronous start: data-parallel steps of all ranks, then chains that part from the same bits."""

import copy
import math
import time
from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn

from lsam_hpc import LSAM, InputError
from lsam_hpc.rma import barrier
from tests.helpers.problems import Bowl, batches, closure_of, flat, network

TWO = pytest.mark.mpi(np=[2])


def sgd(model, lr=0.125, momentum=0.0):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)


def everywhere(comm, vector):
    """Return whether all ranks hold the same bits."""
    return all(np.array_equal(other, vector.numpy()) for other in comm.allgather(vector.numpy()))


def center_of(opt, model):
    with opt.center(model):
        return flat(model)


@TWO
def test_a_start_of_all_steps_is_data_parallel_sam(comm):
    # Truth: one group of all ranks, as `lsam train --synchronous`; its tests compare it with plain tensors.
    together = {"group_size": comm.size, "coupling": "restart", "pull": 1.0}
    for momentum, options in (
        (0.9, {"period": 3}),
        (0.9, {"period": 3, "overlap": False, "coupling": "restart", "group_ascent": "averaged"}),
        (0.9, {"period": 5, "coupling": "kernel", "stiffness": 5.0, "center_momentum": 0.5}),
        (0.9, {"period": 1, "mode": "lockstep", "ascent": "dp-sat", "mask": "random"}),
        (0.0, {"period": 2, "max_delay": 3, "budget": "per-rank", "temperature": 1e-3, "seed": 3}),
        (0.9, {"period": 3, "overlap": False, "ascent": "center"}),
    ):
        ended = []
        for start in (False, True):
            model = network()
            arguments = {"rho": lambda step, scale=1 if start else 2: 0.3 * scale * step / 24, **options}
            if start:
                arguments["synchronous_steps"] = 12
            else:
                arguments |= {"mode": "async", "budget": "total", "center_momentum": 0.0, "max_delay": 1, **together}
            with LSAM(sgd(model, momentum=momentum), comm=comm, **arguments) as opt:
                data, steps = batches(12, seed=comm.rank), []
                for step in opt.steps(24 if start else 12):
                    steps.append(step)
                    opt.step(closure_of(model, opt, *next(data)))
                if not start:
                    opt.exchange()
                ended.append((flat(model), center_of(opt, model)))
                if start:
                    assert steps == list(range(0, 24, 2))
                    assert torch.equal(*ended[-1])
                    assert everywhere(comm, ended[-1][1])
                    assert opt.stats()["exchanges"] == math.ceil(12 / options["period"])
                    assert opt.stats()["refused"] == 0
        torch.testing.assert_close(ended[1][0], ended[0][0], rtol=0, atol=1e-12)


@TWO
def test_then_the_chains_part_as_in_a_recursion_in_numpy(comm):
    # Truth: both chains in float64, in rank order. Minima differ, so that the chains part.
    lr, a, period, pull, n, size = 0.125, 0.5, 3, 0.3, 7, 5
    minima = np.arange(comm.size, dtype=float)
    for coupling, rho, mu, center_mu in (
        ("elastic", 0.2, 0.0, 0.0),
        ("elastic", 0.0, 0.9, 0.4),  # rho 0, momentum: post-local SGD
        ("restart", 0.2, 0.9, 0.0),
        ("kernel", 0.0, 0.5, 0.4),
    ):
        start, stiffness = np.linspace(-1, 1, size), 0.7
        model = Bowl(start, a, float(minima[comm.rank]))
        options = {"coupling": coupling, "pull": pull, "period": period, "stiffness": stiffness}
        options |= {"mode": "lockstep", "center_momentum": center_mu, "synchronous_steps": n, "comm": comm}

        def gradient(x, minimum, rho=rho):
            g = a * (x - minimum)
            return a * (x + rho * g / np.linalg.norm(g) - minimum)

        with LSAM(sgd(model, lr, mu), rho=rho, gamma=0.0, **options) as opt:
            xs, momenta = [start.copy() for _ in minima], [np.zeros(size) for _ in minima]
            y, reads, velocities = start.copy(), [start.copy() for _ in minima], [np.zeros(size) for _ in minima]
            for step in range(1, n + 14):
                grads = [gradient(x, minimum) for x, minimum in zip(xs, minima, strict=True)]
                if step <= n:
                    grads = [np.mean(grads, 0)] * comm.size
                elif coupling == "kernel":
                    grads = [g + stiffness * (x - read) for g, x, read in zip(grads, xs, reads, strict=True)]
                for i, g in enumerate(grads):
                    momenta[i] = mu * momenta[i] + g
                    xs[i] = xs[i] - lr * momenta[i]
                if step <= n and (step % period == 0 or step == n):
                    y, reads = xs[0].copy(), [x.copy() for x in xs]
                if step > n and (step - n) % period == 0:
                    for i in range(comm.size):
                        gap = xs[i] - (y if coupling == "elastic" else reads[i])
                        velocities[i] = center_mu * velocities[i] + pull * gap
                        y = y + velocities[i]
                        reads[i] = y.copy()
                        if coupling == "elastic":
                            xs[i] = xs[i] - pull * gap
                        elif coupling == "restart":
                            xs[i] = y.copy()
                opt.step(model.closure(opt))
                barrier(comm)
                np.testing.assert_allclose(model.value, xs[comm.rank], rtol=0, atol=1e-12)
                with opt.center(model):
                    np.testing.assert_allclose(model.value, y, rtol=0, atol=1e-12)
                barrier(comm)
            assert not everywhere(comm, model.x.detach())


@TWO
def test_the_budget_counts_each_common_step_as_one_of_each_chain(comm):
    x, y = next(batches(1, torch.float32))
    for options in ({}, {"overlap": False, "wire_dtype": "bfloat16"}, {"budget": "per-rank"}, {"mode": "lockstep"}):
        model = network(torch.float32)
        with LSAM(sgd(model, momentum=0.9), synchronous_steps=10, comm=comm, **options) as opt:
            steps = []
            for step in opt.steps(100):
                steps.append(step)
                assert opt.alike(lambda: comm.rank) == (0 if opt.starting else comm.rank)
                opt.step(closure_of(model, opt, x, y))
                if opt.local_step <= 10:
                    records = opt.communication.links.peers
                    assert records.records()[comm.rank]["global_step"] == opt.global_step == 2 * opt.local_step
                if opt.local_step == 10:
                    barrier(comm)
                    assert torch.equal(opt._coupler._center, torch.cat([flat(model)]))
                    if "wire_dtype" not in options:
                        assert torch.equal(center_of(opt, model), flat(model))
                    barrier(comm)
            assert steps[:10] == list(range(0, 20, 2))
            assert sorted(chain.from_iterable(s[10:] for s in comm.allgather(steps))) == list(range(20, 100))


@TWO
def test_a_start_resumes_to_the_bit(comm):
    def made(seed=0, **options):
        model = network(torch.float32, seed=seed)
        options = {"mode": "lockstep", "period": 3, "temperature": 1e-4, "synchronous_steps": 6, **options}
        return model, LSAM(sgd(model, momentum=0.9), rho=0.1, ascent="dp-sat", comm=comm, **options)

    def train(model, opt, first, last):
        for x, y in list(batches(12, torch.float32, seed=comm.rank))[first:last]:
            opt.step(closure_of(model, opt, x, y))

    kernel, momentum = {"coupling": "kernel"}, {"center_momentum": 0.5}
    for options, points in ((kernel, (3, 8)), (momentum, (3, 6))):
        for saved in points:  # in the start, at its end, after it
            model, opt = made(**options)
            with opt:
                train(model, opt, 0, saved)
                barrier(comm)
                state = copy.deepcopy(opt.state_dict())  # the base optimizer changes its buffers in place
                barrier(comm)
                train(model, opt, saved, 12)
                whole, steps, y = flat(model), opt.stats(), center_of(opt, model)
            model, opt = made(seed=7, **options)
            with opt:
                if saved == 6:
                    train(model, opt, 0, 8)  # from another phase
                opt.load_state_dict(state)
                train(model, opt, saved, 12)
                assert torch.equal(flat(model), whole)
                assert torch.equal(center_of(opt, model), y)
                assert opt.stats() == steps
    # A rank that joins in the start continues as the others; after the start it has noise of its own.
    for saved in (3, 8):
        model, opt = made(mode="async")
        with opt:
            train(model, opt, 0, saved)
            barrier(comm)
            state = copy.deepcopy(opt.state_dict())  # the base optimizer changes its buffers in place
            barrier(comm)
            train(model, opt, saved, 6)
            whole = flat(model)
        model, opt = made(mode="async")
        with opt:
            if comm.rank == 1:
                center, state = state["center"], opt.state_dict()
                state["lsam"] |= {"sample": center["y"], "anchor": center["y"], "anchor_version": center["version"]}
                state["center"] = center
            opt.load_state_dict(state)
            assert opt.starting == (saved == 3)
            train(model, opt, saved, max(saved, 6))
            if saved == 3:
                assert torch.equal(flat(model), whole)
            noise = comm.allgather(opt._noise.generator.initial_seed())
            assert noise == ([0, 1] if saved == 8 else noise)


@TWO
def test_states_without_a_generator_share_their_noise_in_the_start_only(comm):
    model, states = network(torch.float32), {}
    options = {"mode": "lockstep", "temperature": 1e-4, "synchronous_steps": 6, "comm": comm}
    with LSAM(sgd(model), **options) as opt:
        for step, (x, y) in enumerate(batches(9, torch.float32, seed=comm.rank)):
            if step in (3, 8):
                states[step] = copy.deepcopy(opt.state_dict())
                states[step]["lsam"]["generator"] = None
            opt.step(closure_of(model, opt, x, y))
        for step in (3, 8, 3):  # of an optimizer that has left the start, in it, and after it
            opt.load_state_dict(states[step])
            drawn = comm.allgather(torch.randn(3, generator=opt._noise.generator).tolist())
            assert (drawn[0] == drawn[1]) == (step == 3)


@TWO
def test_stop_ends_all_ranks_at_the_same_step_of_the_start(comm):
    for options in ({}, {"budget": "per-rank"}, {"mode": "lockstep", "period": 3}, {"overlap": False}):
        model = network(torch.float32)
        with LSAM(sgd(model), comm=comm, synchronous_steps=1000, **options) as opt:
            x, y = next(batches(1, torch.float32))
            for _ in opt.steps(4000):
                if comm.rank == 1 and opt.local_step == 20:
                    opt.stop()
                opt.step(closure_of(model, opt, x, y))
            assert opt.stopped
            assert comm.allgather(opt.local_step) == [21, 21]
            assert everywhere(comm, flat(model))
            barrier(comm)
            tickets = opt.state_dict()["center"]["tickets"]
            assert tickets == (42 if "mode" not in options and "budget" not in options else 0)
            barrier(comm)


@TWO
def test_batchnorm_statistics_are_averaged_where_the_chains_part(comm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    norm, seen = model[1], []
    with LSAM(sgd(model), comm=comm, model=model, synchronous_steps=5, period=2) as opt:
        part = opt._part

        def parting(start):
            seen.append((norm.running_mean.clone(), norm.running_var.clone()))
            part(start)

        opt._part = parting
        for x, y in batches(5, torch.float32, seed=comm.rank):
            opt.step(closure_of(model, opt, x, y))
        ((mean, variance),) = seen
        means, variances = comm.allgather(mean.numpy()), comm.allgather(variance.numpy())
        assert not np.allclose(*means)
        np.testing.assert_allclose(norm.running_mean.numpy(), np.mean(means, 0), rtol=1e-6)
        np.testing.assert_allclose(norm.running_var.numpy(), np.mean(variances, 0), rtol=1e-6)
        assert everywhere(comm, torch.cat([t.detach().reshape(-1) for t in opt.shared]))
        for ours, its in zip(opt.shared, opt.read_center(), strict=True):
            assert torch.equal(ours.detach(), its)
        barrier(comm)


@TWO
def test_a_sample_that_is_not_finite_restarts_on_all_ranks_at_once(comm):
    for options in ({}, {"overlap": False}):
        model = network(torch.float32)
        with LSAM(sgd(model, momentum=0.9), comm=comm, synchronous_steps=18, period=4, **options) as opt:
            for step, (x, y) in enumerate(batches(18, torch.float32, seed=comm.rank)):
                if comm.rank and step == 9:  # its exchange ends later than that of rank 0, and both apply it together
                    x = x * math.nan
                    opt._coupler.center.begin_exchange = lambda sample, pull: time.sleep(0.2)
                opt.step(closure_of(model, opt, x, y))
                if 9 <= step < 17:
                    assert np.array_equal(*comm.allgather(flat(model).numpy()), equal_nan=True)
            assert everywhere(comm, flat(model))
            assert flat(model).isfinite().all()
            assert comm.allgather(opt.stats()["refused"]) == [1, 1]


@TWO
def test_a_large_step_of_the_start_is_no_outlier(comm):
    model = Bowl(np.zeros(3), 1.0, 1e6)
    with LSAM(sgd(model, 0.5), rho=0.0, comm=comm, synchronous_steps=8, period=1, max_delta_ratio=1.5) as opt:
        for rate in (1e-6, 1e-6, 1e-3, 0.5, 1e-6, 1e-6, 0.5, 0.5):
            opt.param_groups[0]["lr"] = rate
            opt.step(model.closure(opt))
        assert opt.stats()["refused"] == 0
        assert opt._coupler.delta_filter.state_dict() == []


@TWO
def test_what_excludes_a_start_is_refused(comm):
    def refused(text, **options):
        with pytest.raises(InputError) as caught:
            LSAM(sgd(network()), comm=comm, **options)
        assert str(caught.value) == text

    refused("synchronous_steps: expected 0 with the topology gossip, found 5", topology="gossip", synchronous_steps=5)
    refused("synchronous_steps: expected 0 with the topology leader, found 5", topology="leader", synchronous_steps=5)
    refused("synchronous_steps: expected 0 with the ascent sampa, found 5", ascent="sampa", synchronous_steps=5)
    refused("synchronous_steps: expected a whole number of steps >= 0, found -1", synchronous_steps=-1)
    with pytest.raises(InputError, match="synchronous_steps: expected the same on every rank, found 0 on rank 0, 1 on"):
        LSAM(sgd(network()), comm=comm, synchronous_steps=comm.rank)
    with pytest.raises(InputError, match=r"period \(in lockstep or groups\): expected the same on every rank"):
        LSAM(sgd(network()), comm=comm, synchronous_steps=5, period=1 + comm.rank)


@pytest.mark.mpi(np=[1])
def test_one_rank_has_no_start(comm):
    ended = []
    for steps in (0, 10):
        model = network()
        with LSAM(
            sgd(model, momentum=0.9), rho=0.1, pull=0.4, overlap=False, synchronous_steps=steps, comm=comm
        ) as opt:
            for x, y in batches(20):
                opt.step(closure_of(model, opt, x, y))
            ended.append((flat(model), center_of(opt, model)))
    assert all(map(torch.equal, *ended))


@pytest.mark.mpi(np=[4])
def test_groups_start_with_all_ranks(comm):
    # Truth in the start: the mean over all four ranks of the gradients at each rank's own x + e.
    lr, rho, n, minima = 0.125, 0.2, 6, np.arange(4.0)
    start = np.linspace(-1, 1, 5)
    model, x = Bowl(start, 1.0, float(minima[comm.rank])), start
    with LSAM(sgd(model, lr), rho=rho, gamma=0.0, group_size=2, period=4, synchronous_steps=n, comm=comm) as opt:
        steps = []
        for step in opt.steps(40):
            steps.append(step)
            opt.step(model.closure(opt))
            if opt.local_step <= n:
                x = x - lr * np.mean([x + rho * (x - m) / np.linalg.norm(x - m) - m for m in minima], 0)
                np.testing.assert_allclose(model.value, x, rtol=0, atol=1e-12)
        samples = comm.allgather(model.value)
        np.testing.assert_array_equal(samples[0], samples[1])
        np.testing.assert_array_equal(samples[2], samples[3])
        assert abs(samples[0] - samples[2]).max() > 1e-3
        taken = comm.allgather(steps)
        assert taken[0] == taken[1]
        assert taken[0][:n] == taken[2][:n] == list(range(0, 2 * n, 2))
        assert sorted(taken[0][n:] + taken[2][n:]) == list(range(2 * n, 40))
