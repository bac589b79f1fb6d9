"""Couples an optimizer to a center in MPI windows: tensors to arrays, and the thread that exchanges."""

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
    """What `RmaCenter` needs of `rma.Center` and `rma.HalfCenter`."""

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
        """Add to y and return the number of adds before."""


class RmaCenter:
    """A center in windows as the optimizers' `Center` protocol: host tensors in, host tensors out.

    Args:
        windows: that hold y.
        lockstep: exchanges run in rank order between barriers, so that a run is reproducible to the bit.
        peers: where accepted states are published for others to read. Default: nowhere.
    """

    def __init__(self, windows: Windows, lockstep: bool = False, peers: rma.Peers | None = None) -> None:
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
    def shares(self) -> bool:
        """Whether accepted states are published."""
        return self._peers is not None

    def read(self, out: Tensor) -> int:
        """Copy y into `out`, shape (P,), and return a version that the copy holds at least."""
        return self._windows.read(array(out))

    def look(self, out: Tensor) -> None:
        """Copy y into `out`, shape (P,)."""
        self._windows.read(array(out))

    def add(self, delta: Tensor) -> int:
        """Add `delta`, shape (P,), to y and return the number of adds before this one."""
        return self._windows.add(array(delta))

    def meet(self, sample: Tensor, pull: float) -> None:
        """Do nothing: y is all that a chain meets here."""

    def share(self, state: Tensor) -> None:
        """Publish a state of this chain, shape (P,), for others to read."""
        if self._peers is not None:
            self._peers.publish(array(state))

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Run the body at once, or in lockstep when all lower ranks' bodies have run."""
        comm = self._windows.comm
        before, after = (comm.rank, comm.size - comm.rank) if self._lockstep else (0, 0)
        for _ in range(before):
            rma.barrier(comm)
        yield
        for _ in range(after):
            rma.barrier(comm)


class Background:
    """Does a chain's exchanges in a thread of its own, which ends with the process or at `close`.

    Args:
        lost: called while a job is waited for, every `patience` seconds; returns whether the job must be given up. Its
            own thread then stays where it is.
        patience: seconds. Default 5.
    """

    def __init__(self, lost: Callable[[], bool], patience: float = 5.0) -> None:
        self._lost = lost
        self._patience = patience
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        # A daemon: a job that hangs in MPI after a rank was lost must not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="lsam-exchange", daemon=True)
        self._thread.start()

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Have a job done, after those submitted before, and return its future."""
        future: Future[T] = Future()
        self._jobs.put((future, job))
        return future

    def wait(self, future: Future[T]) -> bool:
        """Wait for a job; return False if it must be given up."""
        while True:
            try:
                future.exception(self._patience)
                return True
            except FutureTimeoutError:
                if self._lost():
                    return False

    def close(self) -> None:
        """End the thread when the jobs before are done; a second call does nothing."""
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
    """Return a host tensor's memory as an array."""
    found: NDArray[np.generic] = tensor.detach().numpy()
    return found
