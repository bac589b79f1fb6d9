"""LSAM on all ranks: exact in lockstep, no waiting in async mode, the same errors on all ranks."""

import time
from itertools import chain

import numpy as np
import pytest
import torch
from torch import nn

from lsam_hpc import LSAM, SAM, InputError
from lsam_hpc.rma import Counter, barrier
from tests.helpers.problems import Bowl, batches, closure_of, flat, network

ALL = pytest.mark.mpi(np=[1, 2, 3, 4])


def sgd(model, lr=0.125, momentum=0.0):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)


@ALL
def test_lockstep_without_ascent_is_easgd(comm):
    # Every rank computes all chains in numpy, in rank order. All constants but the pull are powers of two, so float32
    # results differ from torch's only by the rounding of the pull.
    lr, a, pull, period, size = 0.125, 0.5, np.float32(0.3), 2, 5
    b = np.arange(comm.size, dtype=np.float32)
    start = np.linspace(-1, 1, size).astype(np.float32)
    model = Bowl(start, a, float(b[comm.rank]), torch.float32)
    with LSAM(sgd(model, lr), rho=0.0, pull=0.3, period=period, mode="lockstep", comm=comm) as opt:
        xs, y = [start.copy() for _ in range(comm.size)], start.copy()
        for step in range(1, 31):
            opt.step(model.closure(opt))
            for i in range(comm.size):
                xs[i] = xs[i] - np.float32(lr * a) * (xs[i] - b[i])
            if step % period == 0:
                for i in range(comm.size):
                    delta = pull * (xs[i] - y)
                    y, xs[i] = y + delta, xs[i] - delta
            np.testing.assert_allclose(model.x.detach().numpy(), xs[comm.rank], rtol=0, atol=2e-6)
        with opt.center(model):
            np.testing.assert_allclose(model.x.detach().numpy(), y, rtol=0, atol=2e-6)


@pytest.mark.mpi(np=[1])
def test_one_rank_with_pull_0_is_sam_step_for_step(comm):
    model, plain = network(), network()
    sam = SAM(sgd(plain, momentum=0.9), rho=0.2)
    with LSAM(sgd(model, momentum=0.9), rho=0.2, pull=0.0, period=1, comm=comm) as opt:
        for x, y in batches(50):
            opt.step(closure_of(model, opt, x, y))
            sam.step(closure_of(plain, sam, x, y))
            torch.testing.assert_close(flat(model), flat(plain), rtol=0, atol=1e-12)


@pytest.mark.mpi(np=[2, 4])
def test_lockstep_is_reproducible_to_the_bit(comm):
    def trained(coupling):
        model = network(torch.float32, seed=comm.rank)  # all ranks start from rank 0's parameters
        with LSAM(sgd(model, momentum=0.9), rho=0.1, coupling=coupling, mode="lockstep", seed=5, comm=comm) as opt:
            data = batches(25, torch.float32, seed=comm.rank)
            for _ in opt.steps(25 * comm.size):
                opt.step(closure_of(model, opt, *next(data)))
            with opt.center(model):
                return flat(model)

    for coupling in ("elastic", "kernel", "restart"):
        first, second = trained(coupling), trained(coupling)
        assert torch.equal(first, second)
        assert all(np.array_equal(other, first.numpy()) for other in comm.allgather(first.numpy()))


@pytest.mark.mpi(np=[2, 4])
def test_ranks_do_not_share_their_noise(comm):
    model = Bowl(np.zeros(1000), 0.0)
    with LSAM(sgd(model), rho=0.0, pull=0.0, temperature=1.0, comm=comm) as opt:
        opt.step(model.closure(opt))
    noise = comm.allgather(model.x.detach().numpy())
    # For 1,000 independent pairs the standard deviation of the correlation is 1/sqrt(1000) = 0.03.
    assert abs(np.corrcoef(noise)[~np.eye(comm.size, dtype=bool)]).max() < 0.15


@pytest.mark.mpi(np=[2, 4])
def test_other_ranks_continue_while_one_sleeps(comm, tmp_path):
    # Rank 0 sleeps inside its closure, outside MPI, until the others have taken all their steps and written a file. If
    # an exchange needed rank 0, the others would hang and the deadline would fail the test.
    steps = 200
    model = network(torch.float32)
    with LSAM(sgd(model), rho=0.1, period=2, comm=comm) as opt:
        if comm.rank == 0:
            began = time.monotonic()
            x, y = next(batches(1, torch.float32))
            work = closure_of(model, opt, x, y)

            def sleepy():
                while time.monotonic() - began < 2 or len(list(tmp_path.glob("*.done"))) < comm.size - 1:
                    assert time.monotonic() - began < 60, f"only {list(tmp_path.glob('*.done'))} finished"
                    time.sleep(0.01)
                return work()

            for _ in range(2):
                opt.step(sleepy)
            opt.drain()
            assert opt.stats()["exchanges"] == 1
            # The center changed without it.
            assert opt.communication.links.windows.version >= (comm.size - 1) * steps // 2
        else:
            for x, y in batches(steps, torch.float32, seed=comm.rank):
                opt.step(closure_of(model, opt, x, y))
            opt.drain()
            assert opt.stats()["exchanges"] == steps // 2
            (tmp_path / f"{comm.rank}.done").touch()


@ALL
def test_the_total_budget_is_exact_and_a_slow_rank_takes_fewer_steps(comm):
    model = network(torch.float32)
    x, y = next(batches(1, torch.float32))
    total = 400
    with LSAM(sgd(model), comm=comm) as opt:
        steps = []
        for step in opt.steps(total):
            steps.append(step)
            if comm.rank == 0 and comm.size > 1:
                time.sleep(0.02)
            opt.step(closure_of(model, opt, x, y))
        everything = comm.allgather(steps)
        assert sorted(t for ts in everything for t in ts) == list(range(total))
        assert all(ts == sorted(ts) for ts in everything)
        if comm.size > 1:
            assert len(everything[0]) < total / comm.size


@ALL
def test_a_budget_raised_in_stages_takes_each_step_once(comm):
    # No collective call separates the stages: ranks may be in different ones.
    model = network(torch.float32)
    x, y = next(batches(1, torch.float32))
    with LSAM(sgd(model), comm=comm) as opt:
        steps = []
        for stage in range(1, 41):
            for step in opt.steps(10 * stage):
                steps.append(step)
                opt.step(closure_of(model, opt, x, y))
        assert sorted(chain.from_iterable(comm.allgather(steps))) == list(range(400))


@pytest.mark.mpi(np=[2])
def test_schedules_get_the_global_step_also_without_steps(comm):
    model = network(torch.float32)
    x, y = next(batches(1, torch.float32))
    seen = []
    with LSAM(sgd(model), rho=lambda t: seen.append(t) or 0.1, comm=comm) as opt:
        seen.clear()
        for _ in range(20):
            opt.step(closure_of(model, opt, x, y))
        assert sorted(chain.from_iterable(comm.allgather(seen))) == list(range(40))


@pytest.mark.mpi(np=[2, 3])
def test_equal_shares_per_rank(comm):
    model = network(torch.float32)
    x, y = next(batches(1, torch.float32))
    for options in ({"budget": "per-rank"}, {"mode": "lockstep"}):
        with LSAM(sgd(model), comm=comm, **options) as opt:
            for _ in opt.steps(20):
                opt.step(closure_of(model, opt, x, y))
            assert opt.local_step == -(-20 // comm.size)


@pytest.mark.mpi(np=[2, 4])
def test_all_ranks_refuse_models_that_differ(comm):
    model = nn.Linear(4, 2 if comm.rank < comm.size - 1 else 3)
    with pytest.raises(InputError) as caught:
        LSAM(sgd(model), comm=comm)
    assert str(caught.value) == (
        f"the number of parameters: expected the same on every rank, found 10 on rank 0, 15 on rank {comm.size - 1}"
    )
    model = nn.Linear(4, 3) if comm.rank == 0 else nn.Linear(2, 5)
    with pytest.raises(InputError, match="the parameters' shapes and types: expected the same on every rank"):
        LSAM(sgd(model), comm=comm)


@pytest.mark.mpi(np=[2, 4])
def test_an_error_on_one_rank_is_raised_on_all(comm):
    model = network()
    with pytest.raises(InputError, match="rank 1: period: expected a whole number of steps >= 1, found 0"):
        LSAM(sgd(model), period=0 if comm.rank == 1 else 4, comm=comm)
    with pytest.raises(InputError, match=r"rank 1: mask: expected lsam_hpc.optim.masks.Norm\(model\)"):
        LSAM(sgd(model), mask="norm" if comm.rank == 1 else "all", comm=comm)


@ALL
def test_default_pull_is_nine_tenths_over_the_ranks(comm):
    with LSAM(sgd(network()), comm=comm) as opt:
        assert opt.pull == 0.9 / comm.size


@pytest.mark.mpi(np=[2])
def test_all_ranks_refuse_types_and_options_that_differ(comm):
    model = network(torch.float64 if comm.rank else torch.float32)
    with pytest.raises(InputError, match="the parameters' shapes and types: expected the same on every rank"):
        LSAM(sgd(model), comm=comm)
    model = network()
    with pytest.raises(InputError, match="mode: expected the same on every rank, found 'async' on rank 0"):
        LSAM(sgd(model), mode="lockstep" if comm.rank else "async", comm=comm)
    with pytest.raises(
        InputError, match=r"period \(in lockstep or groups\): expected the same on every rank, found 2 on rank 0"
    ):
        LSAM(sgd(model), mode="lockstep", period=2 + comm.rank, comm=comm)


@ALL
def test_lockstep_resumes_from_its_saved_state_to_the_bit(comm, tmp_path):
    options = {"coupling": "kernel", "rho": 0.1, "period": 3, "temperature": 1e-4, "mode": "lockstep", "comm": comm}
    path = tmp_path / f"{comm.rank}.pt"

    def train(opt, model, first, last):
        for x, y in list(batches(20, torch.float32, seed=comm.rank))[first:last]:
            opt.step(closure_of(model, opt, x, y))

    model = network(torch.float32)
    with LSAM(sgd(model), center_momentum=0.5, ascent="dp-sat", **options) as opt:
        train(opt, model, 0, 10)
        barrier(comm)
        torch.save(opt.state_dict(), path)
        barrier(comm)
        train(opt, model, 10, 20)
        expected, steps = flat(model), opt.stats()
        with opt.center(model):
            center = flat(model)
    model = network(torch.float32, seed=7)
    with LSAM(sgd(model), center_momentum=0.5, ascent="dp-sat", **options) as opt:
        opt.load_state_dict(torch.load(path, weights_only=True))
        train(opt, model, 10, 20)
        assert torch.equal(flat(model), expected)
        assert opt.stats() == steps
        with opt.center(model):
            assert torch.equal(flat(model), center)
        assert opt.communication.links.counter.value == 0  # lockstep does not use the counter


@pytest.mark.mpi(np=[2])
def test_async_resumes_from_its_saved_budget(comm):
    model = network(torch.float32)
    x, y = next(batches(1, torch.float32))
    with LSAM(sgd(model), comm=comm) as opt:
        for _ in opt.steps(30):
            opt.step(closure_of(model, opt, x, y))
        barrier(comm)
        state = opt.state_dict()
    with LSAM(sgd(model), comm=comm) as opt:
        opt.load_state_dict(state)
        steps = []
        for step in opt.steps(50):
            steps.append(step)
            opt.step(closure_of(model, opt, x, y))
        everything = sorted(chain.from_iterable(comm.allgather(steps)))
        # When the state was saved, each rank had claimed a step beyond the budget; it takes this step now.
        assert everything == list(range(30, 50))
        with pytest.raises(InputError, match="state_dict: expected the state of a chain of"):
            opt.load_state_dict({})


@ALL
def test_many_optimizers_can_be_made_and_closed(comm):
    for _ in range(10):
        with LSAM(sgd(network()), comm=comm):
            pass
    counter = Counter(comm)
    counter.add()
    barrier(comm)
    assert counter.value == comm.size
    counter.close()


STOPPED = [{}, {"budget": "per-rank"}, {"mode": "lockstep", "period": 3}, {"group_size": 2}, {"overlap": False}]


@pytest.mark.mpi(np=[2, 4])
def test_stop_ends_all_chains_and_counts_only_steps_taken(comm):
    data = list(batches(40, torch.float32, seed=comm.rank))
    for options in STOPPED:
        model = network(torch.float32)
        with LSAM(sgd(model), comm=comm, **options) as opt:
            for _ in opt.steps(10_000_000):
                opt.step(closure_of(model, opt, *data[opt.local_step % 40]))
                if comm.rank == comm.size - 1 and opt.local_step == 20:
                    opt.stop()
            assert opt.stopped
            assert opt.global_step < 10_000_000
            barrier(comm)
            taken = np.array(comm.allgather(opt.local_step))
            if opt.lockstep:
                assert (taken == 21).all()  # the exchange after the 20th step
            if "group_size" in options:
                assert (taken[::2] == taken[1::2]).all()
            if not opt.lockstep and "budget" not in options:
                assert opt.state_dict()["center"]["tickets"] == taken[:: options.get("group_size", 1)].sum()
            barrier(comm)
