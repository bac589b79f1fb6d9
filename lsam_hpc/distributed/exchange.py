"""Connects an optimizer to a center in MPI windows: converts tensors to arrays and runs exchanges in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc import rma

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


class RmaCenter:
    """Adapts a center in MPI windows to the optimizers' `Center` protocol, which uses host tensors.

    Args:
        windows: the center.
        lockstep: run exchanges in rank order between barriers, for a bit-for-bit reproducible run. Default False.
        peers: table in which accepted states are published for others to read. Default: none.
    """

    def __init__(self, windows: Windows, *, lockstep: bool = False, peers: rma.PeerTable | None = None) -> None:
        self._windows = windows
        self._lockstep = lockstep
        self._peers = peers

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._windows.size

    @property
    def version(self) -> int:
        """Number of adds so far, by all ranks."""
        return self._windows.version

    @property
    def nbytes(self) -> int:
        """Bytes that one read or one add moves."""
        return self._windows.wire_bytes

    @property
    def publishes(self) -> bool:
        """Whether accepted states are published."""
        return self._peers is not None

    def read(self, out: Tensor) -> int:
        """Copy y into `out`, shape (P,), and return a lower bound of the copy's version."""
        return self._windows.read(array(out))

    def peek(self, out: Tensor) -> None:
        """Copy y into `out`, shape (P,)."""
        self._windows.read(array(out))

    def add(self, delta: Tensor) -> int:
        """Add `delta`, shape (P,), to y and return the number of adds before this one."""
        return self._windows.add(array(delta))

    def begin_exchange(self, sample: Tensor, pull: float) -> None:
        """Do nothing: chains are coupled only through y."""

    def publish(self, state: Tensor) -> None:
        """Publish a state of this chain, shape (P,), for others to read."""
        if self._peers is not None:
            self._peers.publish(array(state))

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


class ThreadExecutor:
    """Runs a chain's exchanges in a separate thread, which ends with the process or at `close`.

    Args:
        give_up: called every `patience` seconds while `wait` waits for a job; returns whether to give the job up. The
            thread then stays blocked in the job.
        patience: seconds between calls of `give_up`. Default 5.
    """

    def __init__(self, give_up: Callable[[], bool], patience: float = 5.0) -> None:
        self._give_up = give_up
        self._patience = patience
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
        while True:
            try:
                future.exception(self._patience)
                return True
            except FutureTimeoutError:
                if self._give_up():
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


def array(tensor: Tensor) -> NDArray[np.generic]:
    """Return a host tensor as a numpy array that shares its memory."""
    shared: NDArray[np.generic] = tensor.detach().numpy()
    return shared
