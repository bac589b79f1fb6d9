"""A helper thread for MPI progress on a rank that computes, where MPI makes none by itself."""

from __future__ import annotations

import atexit
import threading
import warnings
from collections.abc import Callable

from mpi4py import MPI

from lsam_hpc.errors import InputError
from lsam_hpc.rma.collective import barrier
from lsam_hpc.rma.collective_context import CollectiveContext

_LEVELS = {
    MPI.THREAD_SINGLE: "MPI_THREAD_SINGLE",
    MPI.THREAD_FUNNELED: "MPI_THREAD_FUNNELED",
    MPI.THREAD_SERIALIZED: "MPI_THREAD_SERIALIZED",
}
# First release of an MPI that accesses windows of ranks on the same node without their help, if older ones do not.
_PASSIVE_SINCE = {"MPICH": (4, 1, 0)}


def why_progress_needed(comm: MPI.Intracomm) -> str | None:
    """Return why each rank needs a helper thread to make its windows accessible while it computes; collective.

    Args:
        comm: the ranks that share a window.

    Returns:
        The reason, the same on all ranks; None if windows of `Win.Allocate` are accessible without it.
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
        what: the feature that needs it, for the message.
    """
    level = MPI.Query_thread()
    if level < MPI.THREAD_MULTIPLE:
        raise InputError(f"MPI thread support: expected MPI_THREAD_MULTIPLE for {what}, found {_LEVELS[level]}")


class ProgressThread(CollectiveContext):
    """Calls into MPI from a daemon thread, so that operations of other ranks on this rank's windows complete.

    A rank that computes seldom enters MPI. Where an operation needs the target's help (see `why_progress_needed`), it
    waits until the target does; with this thread it waits for milliseconds. The thread needs the GIL in each round:
    torch, numpy and sleep release it, a loop in plain Python holds it for up to 5 ms at a time.

    Creating and closing it is collective. Close it before the windows are freed and before MPI is finalized.

    Args:
        comm: the ranks; the thread uses a duplicate.
        interval: seconds between two rounds. Default 1e-3. Shorter ones: docs/explanation/performance.md.
        serve: called in each round, in the helper thread. Default: nothing.

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
        atexit.register(self._halt)  # a failed rank does not call close, and the thread must end before MPI_Finalize

    @property
    def error(self) -> Exception | None:
        """The exception raised in the helper thread, or None."""
        return self._error

    def close(self) -> None:
        """End the thread and free the duplicate; collective; a second call does nothing.

        Raises:
            Exception: what `serve` or MPI raised in the thread, if anything.
        """
        if self._comm is None:
            return
        barrier(self._comm)  # until all ranks have come, one of them may still need this rank's help
        self._halt()
        atexit.unregister(self._halt)
        self._comm.Free()
        self._comm = None
        if self._error is not None:
            raise self._error

    def abandon(self) -> None:
        """End the thread without the other ranks, of which some have failed; it may be blocked in MPI."""
        self._stop.set()
        atexit.unregister(self._halt)

    def _halt(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self, comm: MPI.Intracomm) -> None:
        try:
            while not self._stop.wait(self._interval):
                comm.Iprobe(comm.rank)  # of any other rank it would fail once a rank has failed
                if self._serve is not None:
                    self._serve_once(self._serve)
        except Exception as error:  # noqa: BLE001  (raised at close)
            self._store_error(error)

    def _serve_once(self, serve: Callable[[], object]) -> None:
        try:
            serve()
        except Exception as error:  # noqa: BLE001  (raised at close)
            self._serve = None  # keep the thread: the other ranks still need its probes
            self._store_error(error)

    def _store_error(self, error: Exception) -> None:
        self._error = error
        warnings.warn(f"the progress thread failed: {error!r}; `close` raises this error", stacklevel=1)
