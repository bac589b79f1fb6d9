"""RmaCenter with a numpy array in place of windows, and ThreadExecutor."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lsam_hpc.distributed.exchange import RmaCenter, ThreadExecutor


class FakeWindows:
    """The part of rma.Center that RmaCenter uses."""

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


class FakeStates:
    """The part of rma.PeerStates that RmaCenter uses."""

    def publish(self, state):
        self.state = state.copy()


class FakeCommunication:
    """The part of Communication that RmaCenter uses, without a loss of ranks."""

    def __init__(self, links):
        self.links = links

    def call(self, function):
        return function()

    survive = call


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_reads_adds_and_publishes(dtype):
    states = FakeStates()
    peers = SimpleNamespace(states=states)
    communication = FakeCommunication(SimpleNamespace(windows=FakeWindows(dtype), peers=peers))
    center = RmaCenter(communication, publishes=True)
    assert not RmaCenter(communication).publishes
    out = torch.empty(4, dtype=getattr(torch, dtype))
    assert center.read(out) == 0
    assert out.tolist() == [0, 1, 2, 3]
    delta = torch.tensor([0.5, 0, 0, -1], dtype=out.dtype)
    assert center.add(delta) == 0
    assert delta.tolist() == [0.5, 0, 0, -1]
    out.zero_()
    center.peek(out)
    assert out.tolist() == [0.5, 1, 2, 2]
    center.publish(out)
    assert states.state.tolist() == [0.5, 1, 2, 2]
    assert (center.size, center.version, center.nbytes) == (4, 1, out.nbytes)


def test_jobs_run_in_order_in_one_separate_thread():
    executor = ThreadExecutor(lambda waited: False)
    seen = []
    futures = [executor.submit(lambda i=i: seen.append((i, threading.get_ident())) or i) for i in range(20)]
    assert all(executor.wait(future) for future in futures)
    assert [future.result() for future in futures] == list(range(20))
    assert [i for i, _ in seen] == list(range(20))
    assert {thread for _, thread in seen} != {threading.get_ident()}
    assert len({thread for _, thread in seen}) == 1
    executor.close()
    assert not executor._thread.is_alive()


def test_an_exception_of_a_job_is_raised_by_its_future():
    executor = ThreadExecutor(lambda waited: False)
    future = executor.submit(lambda: 1 / 0)
    assert executor.wait(future)
    with pytest.raises(ZeroDivisionError):
        future.result()
    assert executor.submit(lambda: 7).result(10) == 7  # the thread continues
    executor.close()


def test_a_job_is_given_up_when_the_callback_says_so_and_not_before():
    calls, release = [], threading.Event()

    def give_up(waited):
        calls.append(1)
        return len(calls) == 3

    executor = ThreadExecutor(give_up, pause=0.01)
    future = executor.submit(lambda: release.wait(60))
    assert not executor.wait(future)
    assert len(calls) == 3
    release.set()
    executor.close()
