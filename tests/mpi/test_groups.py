"""Groups of ranks that form one chain: equivalent to one rank with all their data."""

import numpy as np
import pytest
import torch

from lsam_hpc import LSAM, SAM
from lsam_hpc.distributed.groups import Group
from lsam_hpc.rma import barrier
from tests.helpers.problems import batches, closure_of, flat, gradient, network
from tests.mpi.test_sharded import torch_ranks


def sgd(model, momentum=0.0):
    return torch.optim.SGD(model.parameters(), lr=0.2, momentum=momentum)


@pytest.mark.mpi(np=[2, 4])
def test_averages_gradients_and_counts_missing_ones_as_zero(comm):
    group = Group(comm, 2, "own")
    params = [
        torch.nn.Parameter(torch.zeros(3)),
        torch.nn.Parameter(torch.zeros(2, 2)),
        torch.nn.Parameter(torch.zeros(1)),
    ]
    params[0].grad = torch.full((3,), float(comm.rank))
    if comm.rank % 2 == 0:
        params[1].grad = torch.full((2, 2), 4.0)
    group(params)
    pair = comm.rank // 2 * 2
    assert params[0].grad.tolist() == [pair + 0.5] * 3
    assert params[1].grad.tolist() == [[2.0, 2.0]] * 2
    assert params[2].grad is None
    group.close()


@pytest.mark.mpi(np=[4])
def test_groups_that_are_no_neighbours_average_by_torch_too(comm, tmp_path):
    with torch_ranks(comm, tmp_path):
        group = Group(comm, 2, "own", ranks=[comm.rank % 2, comm.rank % 2 + 2])
        parameter = torch.nn.Parameter(torch.zeros(3))
        parameter.grad = torch.full((3,), float(comm.rank))
        group([parameter])
        assert parameter.grad.tolist() == [comm.rank % 2 + 1.0] * 3
        group.close()


@pytest.mark.mpi(np=[2, 4])
def test_one_group_with_an_averaged_ascent_is_sam_on_the_whole_batch(comm):
    model, whole = network(), network()
    sam = SAM(sgd(whole, 0.9), rho=0.1)
    parts = [list(batches(30, seed=rank)) for rank in range(comm.size)]
    with LSAM(sgd(model, 0.9), rho=0.1, pull=0.0, group_size=comm.size, group_ascent="averaged", comm=comm) as opt:
        for step in range(30):
            opt.step(closure_of(model, opt, *parts[comm.rank][step]))
            x = torch.cat([part[step][0] for part in parts])
            y = torch.cat([part[step][1] for part in parts])
            sam.step(closure_of(whole, sam, x, y))
            torch.testing.assert_close(flat(model), flat(whole), rtol=0, atol=1e-10)


@pytest.mark.mpi(np=[2, 4])
def test_an_own_ascent_is_m_sam(comm):
    # Expected: the mean of the gradients at each rank's own x + e, in float64 by functional calls.
    rho, lr = 0.1, 0.2
    model = network()
    parts = [list(batches(10, seed=rank)) for rank in range(comm.size)]
    at = flat(model)
    with LSAM(sgd(model), rho=rho, pull=0.0, group_size=comm.size, comm=comm) as opt:
        for step in range(10):
            descents = []
            for part in parts:
                g = gradient(model, at, *part[step])
                descents.append(gradient(model, at + rho * g / g.norm(), *part[step]))
            at = at - lr * torch.stack(descents).mean(0)
            opt.step(closure_of(model, opt, *parts[comm.rank][step]))
            torch.testing.assert_close(flat(model), at, rtol=0, atol=1e-10)


@pytest.mark.mpi(np=[4])
def test_groups_stay_equal_and_exchange_through_the_center(comm):
    for options in ({}, {"overlap": False}, {"coupling": "kernel"}, {"coupling": "restart"}, {"budget": "per-rank"}):
        model = network(torch.float32)
        with LSAM(sgd(model, 0.9), rho=0.05, period=3, group_size=2, temperature=0.0, comm=comm, **options) as opt:
            data = batches(100, torch.float32, seed=comm.rank)
            steps = []
            for step in opt.steps(40):
                steps.append(step)
                opt.step(closure_of(model, opt, *next(data)))
            samples = comm.allgather(flat(model).numpy())
            all_steps = comm.allgather(steps)
            for leader in (0, 2):
                np.testing.assert_array_equal(samples[leader], samples[leader + 1])
                assert all_steps[leader] == all_steps[leader + 1]
            assert sorted(all_steps[0] + all_steps[2]) == list(range(40))
            barrier(comm)
            with opt.center(model):
                y = flat(model).numpy()
            assert all(np.array_equal(other, y) for other in comm.allgather(y))
            assert opt.stats()["exchanges"] == len(steps) // 3
            assert opt.pull == 0.9 / 2


@pytest.mark.mpi(np=[4])
def test_a_group_rejects_a_delta_and_restarts_together(comm):
    model = network(torch.float32)
    with LSAM(sgd(model), rho=0.05, period=2, group_size=2, comm=comm) as opt:
        data = batches(100, torch.float32, seed=comm.rank)
        for step in range(20):
            if comm.rank == 1 and step == 6:
                with torch.no_grad():
                    next(model.parameters()).fill_(torch.nan)
            opt.step(closure_of(model, opt, *next(data)))
        state = opt.state_dict()
        assert state["lsam"]["refused"] == (1 if comm.rank < 2 else 0)
        samples = comm.allgather(flat(model).numpy())
        np.testing.assert_array_equal(samples[0], samples[1])
        assert np.isfinite(samples[0]).all()
