"""Which rank requests checkpoint sets, and when."""

import time
from types import SimpleNamespace

import pytest
from torch import nn

from lsam_hpc import rma
from lsam_hpc.train import checkpoint_scheduler
from lsam_hpc.train.checkpoint_scheduler import CheckpointScheduler
from lsam_hpc.train.config import TrainConfig

SECONDS = 0.05  # between sets
LIMIT = 10.0  # s, longest wait for a set


class Written:
    """Records the steps of checkpoints and writes nothing."""

    seconds = 1.0
    pending = False

    def __init__(self):
        self.numbers = []

    def write(self, number, state, *, center):
        self.numbers.append(number)

    def write_manifests(self, failed):
        pass

    def wait(self):
        pass


def make(comm, unresponsive, every="auto", *, lockstep=False):
    opt = SimpleNamespace(
        comm=comm,
        unresponsive_ranks=unresponsive,
        failed_ranks=[],
        lockstep=lockstep,
        shares_center=True,
        local_step=0,
        global_step=0,
        alike=lambda number: number(),
        on_recovery=[],
        survive=lambda function: function(),
        communication=SimpleNamespace(call=lambda function: function()),
        state_dict=lambda: {"center": {"y": 0}},
    )
    batches = SimpleNamespace(state_dict=dict)
    parts = dict.fromkeys(("selection", "adversary", "top_eigenvalue"))
    chain = SimpleNamespace(opt=opt, model=nn.Identity(), batches=batches, **parts)
    chain.parts = 1
    config = TrainConfig(checkpoint_every=every, mtbf=SECONDS**2 / (2 * 3600))
    written = Written()
    return CheckpointScheduler(config, written, chain, 0.0), opt, written


@pytest.mark.mpi(np=[1, 4])
def test_one_rank_requests_the_sets_for_all(comm):
    check(comm, [], range(comm.size))


@pytest.mark.mpi(np=[2, 4])
def test_the_lowest_responsive_rank_requests_the_sets(comm):
    check(comm, [0] if comm.rank else [], range(1, comm.size))


def check(comm, unresponsive, stepping):
    scheduler, opt, written = make(comm, unresponsive)
    deadline = time.monotonic() + LIMIT
    while comm.rank in stepping and not written.numbers and time.monotonic() < deadline:
        opt.local_step += 1
        opt.global_step += comm.size
        scheduler.step()
        time.sleep(1e-3)
    rma.barrier(comm)
    scheduler.close()
    assert bool(written.numbers) == (comm.rank in stepping)


@pytest.mark.mpi(np=[1, 4])
def test_the_first_set_is_written_early(comm):
    for every in ("1000000", "auto"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint_scheduler, "EARLY", SECONDS)
            patch.setattr(Written, "seconds", 1e8)  # the interval of auto is 10 minutes
            check_early(comm, every)


def check_early(comm, every):
    scheduler, opt, written = make(comm, [], every)
    deadline = time.monotonic() + LIMIT
    completed = []  # the sets written when the log was completed
    while not written.numbers and time.monotonic() < deadline:
        opt.local_step += 1
        opt.global_step += comm.size
        scheduler.step(lambda: completed.append(len(written.numbers)))
        time.sleep(1e-3)
    rma.barrier(comm)
    scheduler.close()
    assert len(written.numbers) == 1
    assert completed == [0]
    assert len(set(comm.allgather(written.numbers[0]))) == 1


@pytest.mark.mpi(np=[1, 4])
def test_in_lockstep_all_ranks_write_the_early_set_at_the_same_step(comm):
    for every in ("1000000", "auto"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint_scheduler, "EARLY", SECONDS)
            patch.setattr(Written, "seconds", 1e8)  # the interval of auto is 10 minutes
            check_early_in_lockstep(comm, every)


def check_early_in_lockstep(comm, every):
    scheduler, opt, written = make(comm, [], every, lockstep=True)
    steps = []
    for step in range(1, 401):
        if step % 4 == 1:  # the default period: here the ranks wait for each other, and one then runs ahead
            rma.barrier(comm)
            time.sleep(1e-3 * (1 + (comm.rank != step // 4 % comm.size)))
        opt.local_step = step
        scheduler.step()
        if len(written.numbers) > len(steps):
            steps.append(step)
    rma.barrier(comm)
    scheduler.close()
    assert written.numbers == [step * comm.size for step in steps]
    assert len(steps) == 1
    assert len(set(comm.allgather(steps[0]))) == 1
