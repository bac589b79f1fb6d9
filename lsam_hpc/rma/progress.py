"""A helper thread that keeps MPI going on a rank that computes, where MPI does not do so by itself."""

from __future__ import annotations

import atexit
import threading
import warnings
from collections.abc import Callable
from types import TracebackType

from mpi4py import MPI

from lsam_hpc.errors import InputError
from lsam_hpc.rma.collective import barrier

_LEVELS = {
    MPI.THREAD_SINGLE: "MPI_THREAD_SINGLE",
    MPI.THREAD_FUNNELED: "MPI_THREAD_FUNNELED",
    MPI.THREAD_SERIALIZED: "MPI_THREAD_SERIALIZED",
}
# The first release of an MPI that reaches windows of ranks on one node without their help, where older ones don't.
_PASSIVE_SINCE = {"MPICH": (4, 1, 0)}


def reason(comm: MPI.Intracomm) -> str | None:
    """Say why the ranks need a helper thread each for others to reach their windows while they compute; collective.

    Args:
        comm: the ranks that share a window.

    Returns:
        The reason, alike on all ranks, or None where windows of `Win.Allocate` are reached without it.
    """
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    smallest: int = comm.allreduce(node.size, MPI.MIN)
    node.Free()
    if smallest < comm.size:
        return f"ranks span nodes: {comm.size} ranks, {smallest} on the emptiest node"
    name, version = MPI.get_vendor()
    if version < _PASSIVE_SINCE.get(name, version):
        return f"{name} {'.'.join(map(str, version))} does not reach a busy rank's window"
    return None


def require_threads(what: str) -> None:
    """Raise InputError unless MPI lets several threads call it at once.

    Args:
        what: needs it, for the message.
    """
    found = MPI.Query_thread()
    if found < MPI.THREAD_MULTIPLE:
        raise InputError(f"MPI thread support: expected MPI_THREAD_MULTIPLE for {what}, found {_LEVELS[found]}")


class Progress:
    """Calls into MPI from a daemon thread, so that operations of other ranks on this rank's windows complete.

    A rank that computes enters MPI seldom. Where the target's help is needed (`reason` says where), a read or an add
    then waits until it does; with the helper it waits for milliseconds. The helper needs Python's lock for each round:
    torch, numpy and sleep let it go, a loop in plain Python holds it for up to 5 ms at a time.

    Making and closing it is collective. Close it before the windows are freed and before MPI ends.

    Args:
        comm: the ranks; the helper works on a duplicate.
        interval: seconds between two rounds. Default 1e-3; docs/performance.md says what less costs.
        serve: called in each round, in the helper's thread. Default: nothing.

    Raises:
        InputError: MPI was not started with MPI_THREAD_MULTIPLE, or interval is not above 0.
    """

    def __init__(self, comm: MPI.Intracomm, interval: float = 1e-3, serve: Callable[[], object] | None = None) -> None:
        require_threads("the progress thread")
        if not interval > 0:
            raise InputError(f"progress interval: expected more than 0 seconds, found {interval}")
        self._interval = interval
        self._serve = serve
        self._error: Exception | None = None
        self._comm: MPI.Intracomm | None = comm.Dup()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self._comm,), name="lsam-progress", daemon=True)
        self._thread.start()
        atexit.register(self._halt)  # a rank that fails closes nothing, and MPI must not end under the thread

    @property
    def error(self) -> Exception | None:
        """What went wrong in the helper's thread, if anything did."""
        return self._error

    def close(self) -> None:
        """End the thread and free the duplicate; collective; a second call does nothing.

        Raises:
            Exception: the one that `serve` or MPI raised in the thread, if any.
        """
        if self._comm is None:
            return
        barrier(self._comm)  # until the last rank is here another one may wait for this rank's help
        self._halt()
        atexit.unregister(self._halt)
        self._comm.Free()
        self._comm = None
        if self._error is not None:
            raise self._error

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error on this rank the others are not on their way to a collective call: leave it to the job's end.
        if kind is None:
            self.close()

    def _halt(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self, comm: MPI.Intracomm) -> None:
        try:
            while not self._stop.wait(self._interval):
                comm.Iprobe()
                if self._serve is not None:
                    self._serve_once(self._serve)
        except Exception as error:  # noqa: BLE001  (raised at close)
            self._keep(error)

    def _serve_once(self, serve: Callable[[], object]) -> None:
        try:
            serve()
        except Exception as error:  # noqa: BLE001  (raised at close)
            self._serve = None  # the other ranks still need the probes
            self._keep(error)

    def _keep(self, error: Exception) -> None:
        self._error = error
        warnings.warn(f"the progress thread failed: {error!r}; it is raised when it is closed", stacklevel=1)
