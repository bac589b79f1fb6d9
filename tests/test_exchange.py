"""The coupling of tensors to windows, with a window that is only an array, and the thread that exchanges."""

import threading

import numpy as np
import pytest
import torch

from lsam_hpc.exchange import Background, RmaCenter


class Windows:
    """What RmaCenter knows of rma.Center."""

    comm = None

    def __init__(self, dtype):
        self.y = np.arange(4, dtype=dtype)
        self.size, self.dtype, self.version, self.wire_bytes = 4, self.y.dtype, 0, self.y.nbytes

    def read(self, out):
        out[:] = self.y
        return self.version

    def add(self, delta):
        self.y += delta
        self.version += 1
        return self.version - 1


class Board:
    """What RmaCenter knows of rma.Peers."""

    def publish(self, state):
        self.state = state.copy()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_reads_adds_and_publishes(dtype):
    board = Board()
    center = RmaCenter(Windows(dtype), peers=board)
    assert center.shares
    assert not RmaCenter(Windows(dtype)).shares
    out = torch.empty(4, dtype=getattr(torch, dtype))
    assert center.read(out) == 0
    assert out.tolist() == [0, 1, 2, 3]
    delta = torch.tensor([0.5, 0, 0, -1], dtype=out.dtype)
    assert center.add(delta) == 0
    assert delta.tolist() == [0.5, 0, 0, -1]
    out.zero_()
    center.look(out)
    assert out.tolist() == [0.5, 1, 2, 2]
    center.share(out)
    assert board.state.tolist() == [0.5, 1, 2, 2]
    assert (center.size, center.version, center.nbytes) == (4, 1, out.nbytes)


def test_jobs_run_in_order_in_one_other_thread():
    runner = Background(lambda: False)
    seen = []
    futures = [runner.submit(lambda i=i: seen.append((i, threading.get_ident())) or i) for i in range(20)]
    assert all(runner.wait(future) for future in futures)
    assert [future.result() for future in futures] == list(range(20))
    assert [i for i, _ in seen] == list(range(20))
    assert {thread for _, thread in seen} != {threading.get_ident()}
    assert len({thread for _, thread in seen}) == 1
    runner.close()
    assert not runner._thread.is_alive()


def test_what_a_job_raises_is_raised_by_its_future():
    runner = Background(lambda: False)
    future = runner.submit(lambda: 1 / 0)
    assert runner.wait(future)
    with pytest.raises(ZeroDivisionError):
        future.result()
    assert runner.submit(lambda: 7).result(10) == 7  # the thread lives on
    runner.close()


def test_a_job_is_given_up_when_a_rank_is_lost_and_not_before():
    asked, go_on = [], threading.Event()

    def lost():
        asked.append(1)
        return len(asked) == 3

    runner = Background(lost, patience=0.01)
    future = runner.submit(lambda: go_on.wait(60))
    assert not runner.wait(future)
    assert len(asked) == 3
    go_on.set()
    runner.close()
