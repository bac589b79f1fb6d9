"""Connects an optimizer to a center in MPI windows: converts tensors to arrays and runs exchanges in a thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc import rma
from lsam_hpc.errors import RankLostError
from lsam_hpc.optim.executor import InlineExecutor

T = TypeVar("T")


class Windows(Protocol):
    """The common interface of `rma.Center` and `rma.HalfPrecisionCenter` that `RmaCenter` uses."""

    @property
    def comm(self) -> Any:  # noqa: ANN401
        """The ranks."""

    @property
    def size(self) -> int:
        """Number of elements."""

    @property
    def version(self) -> int:
        """Number of adds so far, by all ranks."""

    @property
    def wire_bytes(self) -> int:
        """Bytes that one read or one add moves."""

    def read(self, out: NDArray[Any]) -> int:
        """Copy y into `out` and return its version."""

    def add(self, delta: NDArray[Any]) -> int:
        """Add `delta` to y and return the number of adds before this one."""


class Connected(Protocol):
    """The interface of `Communication` that `RmaCenter` uses."""

    @property
    def links(self) -> Any:  # noqa: ANN401
        """Holds the `windows` and the `peers`; replaced when ranks are lost."""

    def call(self, function: Callable[[], T]) -> T:
        """Call a function that uses windows; raise RankLostError if it does not return because a rank has failed."""

    def survive(self, function: Callable[[], T]) -> T:
        """Call a function, and again if it raised RankLostError, after a recovery; for the training thread."""


class RmaCenter:
    """Adapts a center in MPI windows to the optimizers' `Center` protocol, which uses host tensors.

    Args:
        communication: has the windows, and the table in which accepted states are published.
        lockstep: run exchanges in rank order between barriers, for a bit-for-bit reproducible run. Default False.
        publishes: publish accepted states for others to read. Default False.
    """

    def __init__(self, communication: Connected, *, lockstep: bool = False, publishes: bool = False) -> None:
        self._communication = communication
        self._lockstep = lockstep
        self.publishes = publishes
        self.size: int = self._windows.size  # number of elements

    @property
    def version(self) -> int:
        """Number of adds so far, by all ranks; for the training thread."""
        return self._survive(lambda: self._windows.version)

    @property
    def nbytes(self) -> int:
        """Bytes that one read or one add moves."""
        return self._windows.wire_bytes

    def read(self, out: Tensor) -> int:
        """Copy y into `out`, shape (P,), and return a lower bound of the copy's version."""
        return self._use(lambda windows: windows.read(array(out)))

    def peek(self, out: Tensor) -> None:
        """Copy y into `out`, shape (P,); for the training thread."""
        self._survive(lambda: self._windows.read(array(out)))

    def add(self, delta: Tensor) -> int:
        """Add `delta`, shape (P,), to y and return the number of adds before this one."""
        return self._use(lambda windows: windows.add(array(delta)))

    def begin_exchange(self, sample: Tensor, pull: float) -> None:
        """Do nothing: chains are coupled only through y."""

    def publish(self, state: Tensor) -> None:
        """Publish a state of this chain, shape (P,), for others to read."""
        if self.publishes:
            self._communication.links.peers.states.publish(array(state))

    @contextmanager
    def exclusive_turn(self) -> Iterator[None]:
        """Run the body immediately; in lockstep, after the bodies of all lower ranks."""
        comm = self._windows.comm
        before, after = (comm.rank, comm.size - comm.rank) if self._lockstep else (0, 0)
        for _ in range(before):
            rma.barrier(comm)
        yield
        for _ in range(after):
            rma.barrier(comm)

    @property
    def _windows(self) -> Windows:
        windows: Windows = self._communication.links.windows
        return windows

    def _survive(self, function: Callable[[], int]) -> int:
        return self._communication.survive(lambda: self._communication.call(function))

    def _use(self, function: Callable[[Windows], int]) -> int:
        windows = self._windows
        result = function(windows)
        if windows is not self._windows:
            raise RankLostError("an exchange was given up, because a rank had failed")
        return result


class ThreadExecutor:
    """Runs a chain's exchanges in a separate thread, which ends with the process or at `close`.

    Args:
        give_up: called every `pause` seconds while `wait` waits for a job, with the seconds waited so far; returns
            whether to give the job up. The thread then stays blocked in the job.
        pause: seconds between calls of `give_up`. Default 0.1.
    """

    def __init__(self, give_up: Callable[[float], bool], pause: float = 0.1) -> None:
        self._give_up = give_up
        self._pause = pause
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        # A daemon thread: a job that hangs in MPI after a rank has failed must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name="lsam-exchange", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Queue a job and return its future; jobs run one at a time, in order of submission."""
        future: Future[T] = Future()
        self._jobs.put((future, job))
        return future

    def wait(self, future: Future[T]) -> bool:
        """Wait for a job; return False if it was given up."""
        began = time.monotonic()
        while True:
            try:
                future.exception(self._pause)
                return True
            except FutureTimeoutError:
                if self._give_up(time.monotonic() - began):
                    return False

    def close(self) -> None:
        """End the thread after all queued jobs; a second call does nothing."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (task := self._jobs.get()) is not None:
            future, job = task
            try:
                result = job()
            except Exception as error:  # noqa: BLE001  (the training thread raises it)
                future.set_exception(error)
            else:
                future.set_result(result)


class GuardedExecutor(InlineExecutor):
    """Runs each job at once, by a function that gives it up if it does not return.

    Args:
        call: calls the job.
    """

    def __init__(self, call: Callable[[Callable[[], Any]], Any]) -> None:
        self._call = call

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Run the job and return its completed future; exceptions of the job propagate to the caller."""
        return super().submit(lambda: self._call(job))


def array(tensor: Tensor) -> NDArray[np.generic]:
    """Return a host tensor as a numpy array that shares its memory."""
    shared: NDArray[np.generic] = tensor.detach().numpy()
    return shared
