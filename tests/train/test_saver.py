"""When sets of checkpoints are called, and by whom."""

import time
from types import SimpleNamespace

import pytest
from torch import nn

from lsam_hpc import rma
from lsam_hpc.train.config import TrainConfig
from lsam_hpc.train.saver import Saver

SECONDS = 0.05  # between sets


class Written:
    """Checkpoints that are only counted."""

    seconds = 1.0

    def __init__(self):
        self.numbers = []

    def write(self, number, state):
        self.numbers.append(number)

    def tend(self, silent):
        pass

    def wait(self):
        pass


def make(comm, silent):
    opt = SimpleNamespace(
        comm=comm, silent=silent, lost=[], lockstep=False, shares_center=True, local_step=0, total_step=0,
        alike=lambda number: number(), state_dict=lambda: {"center": {"y": 0}},
    )  # fmt: skip
    chain = SimpleNamespace(opt=opt, model=nn.Identity(), batches=SimpleNamespace(state_dict=dict))
    config = TrainConfig(checkpoint_every="auto", mtbf=SECONDS**2 / (2 * Written.seconds * 3600))
    written = Written()
    return Saver(config, written, chain, 0.0), opt, written


@pytest.mark.mpi(np=[1, 4])
def test_a_rank_calls_the_sets_for_all(comm):
    check(comm, [], range(comm.size))


@pytest.mark.mpi(np=[2, 4])
def test_the_lowest_rank_that_is_left_calls_the_sets(comm):
    check(comm, [0] if comm.rank else [], range(1, comm.size))


def check(comm, silent, stepping):
    saver, opt, written = make(comm, silent)
    deadline = time.monotonic() + 60
    while comm.rank in stepping and not written.numbers and time.monotonic() < deadline:
        opt.local_step += 1
        opt.total_step += comm.size
        saver.step()
        time.sleep(1e-3)
    rma.barrier(comm)
    saver.close()
    assert bool(written.numbers) == (comm.rank in stepping)
