"""A table of all ranks' progress records, in a window that is read without the owner's help."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from types import TracebackType

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from lsam_hpc.errors import InputError, RankLostError
from lsam_hpc.rma.collective import barrier, wait_without_spinning
from lsam_hpc.rma.peer_states import PeerStates

RECORD = np.dtype(
    [
        ("heartbeats", "i8"),  # a counter that increases while the rank is alive
        ("step", "i8"),  # local steps taken
        ("global_step", "i8"),  # steps of all ranks, as last seen by this rank
        ("loss", "f8"),  # smoothed mini-batch loss; NaN before the first
        ("rounds", "i8"),  # rounds of `rendezvous` that the rank has entered, two per call; LEFT after `close`
        ("failed", "i8"),  # 1 + the lowest rank believed to have failed; 0 if none
        ("results", "f8", (16,)),  # final results of the rank; NaN before
    ]
)
LEFT = 1 << 40
_PATIENCE = 0.2  # seconds to wait for records: ranks on other nodes with a progress thread answer within 60 ms


class PeerTable:
    """A record and optionally a state of each rank, in `Win.Allocate` memory.

    A rank writes its own with plain stores, about 1 us for a heartbeat, and reads the others' without their help. Only
    creating and closing it is collective. One thread may send heartbeats, another read records.

    A dead rank is recognized by its heartbeat counter, which no longer changes: on one node MPI reports nothing, and
    between nodes a read from a dead rank may never return. So requests for records have a time limit.

    Args:
        comm: the ranks.
        size: number of elements of a state. Default 0: records only.
        dtype: type of the elements of a state. Default float32.

    Attributes:
        failed: returns the ranks that are known to have failed: they count as unresponsive at once. Default: none.
        suspended: returns True while records must not be requested, because that could crash. Default: never.
        names: the host of each rank, for messages.
        states: those that the ranks publish.

    Raises:
        InputError: as of `PeerStates`.
    """

    def __init__(self, comm: MPI.Intracomm, size: int = 0, dtype: str = "float32") -> None:
        self.comm = comm
        # Two windows: a flush may wait for all pending operations of a window, and one with a dead rank never ends.
        self.states = PeerStates(comm, size, dtype)
        self.names: list[str] = comm.allgather(MPI.Get_processor_name())
        self._records = MPI.Win.Allocate(RECORD.itemsize, 1, comm=comm)
        self._record = np.asarray(self._records.tomemory()).view(RECORD)
        # Views of one element each: to make them takes several times as long as to write into them.
        names = ("heartbeats", "step", "global_step", "loss")
        self._heartbeats, self._step, self._global_step, self._loss = (self._record[name] for name in names)
        self._record[:] = 0
        self._record["loss"] = self._record["results"] = np.nan
        # The last record received from each rank, the receive buffer, and the pending request for the next record.
        self._known = np.repeat(self._record, comm.size)
        self._arriving = self._known.copy()
        self._requests: dict[int, MPI.Request] = {}
        self._last_heartbeats = self._known["heartbeats"].copy()  # at the last call of `unresponsive`
        self._unchanged = np.zeros(comm.size)  # seconds without a new heartbeat, as of that call
        self._last_check: float | None = None  # time of that call
        self._records_lock = threading.Lock()
        self.failed: Callable[[], Collection[int]] = tuple
        self.suspended: Callable[[], bool] = bool
        self._records.Lock_all(MPI.MODE_NOCHECK)
        self._records.Sync()
        barrier(comm)
        self._open = True

    @property
    def steps(self) -> list[int]:
        """Local steps of each rank, from the last record that was received; asks no rank, also after `close`."""
        steps: list[int] = self._known["step"].tolist()
        return steps

    def update(self, step: int, global_step: int, loss: float) -> None:
        """Send a heartbeat with this rank's progress.

        Args:
            step: local steps taken.
            global_step: steps of all ranks.
            loss: smoothed mini-batch loss.
        """
        self._step[0] = step
        self._global_step[0] = global_step
        self._loss[0] = loss
        self.heartbeat()

    def heartbeat(self) -> None:
        """Show the other ranks that this one is alive."""
        self._heartbeats[0] += 1
        self._records.Sync()  # from here on the others' Gets see the stores above

    def records(self) -> NDArray[np.void]:
        """Return the records of all ranks, shape (ranks,), fields as in `RECORD`.

        For a rank that does not answer within 0.2 s it is the last record received.
        """
        with self._records_lock:
            self._refresh()
            return self._known.copy()

    @property
    def last_records(self) -> NDArray[np.void]:
        """The records of all ranks that were received last."""
        return self._known.copy()

    def take_over(self, before: PeerTable) -> None:
        """Continue this rank's record and published state of a table with other ranks."""
        self._record[:] = before._record
        self._record["failed"] = 0
        self.states.take_over(before.states)
        self.heartbeat()

    def unresponsive(self, after: float) -> list[int]:
        """Return the ranks that have not closed and have sent no heartbeat for `after` seconds.

        Time is measured from the first call, on this rank's clock. The time between two calls counts for half of
        `after` at most, so that no rank is taken for dead when a job resumes that was suspended as a whole.

        Args:
            after: time limit, s.
        """
        with self._records_lock:
            self._refresh()
            now = time.monotonic()
            passed = 0.0 if self._last_check is None else min(now - self._last_check, after / 2)
            heartbeats = self._known["heartbeats"].copy()
            self._unchanged = np.where(heartbeats == self._last_heartbeats, self._unchanged + passed, 0.0)
            self._last_check, self._last_heartbeats = now, heartbeats
            unresponsive = (self._unchanged >= after) & (self._known["rounds"] < LEFT)
            unresponsive[list(self.failed())] = True
            unresponsive[self.comm.rank] = False
            return [int(rank) for rank in unresponsive.nonzero()[0]]

    def rendezvous(
        self, after: float, results: Sequence[float] = (), interrupted: Callable[[], bool] = bool
    ) -> tuple[NDArray[np.void], list[int]]:
        """Wait, without spinning or collective calls, until each rank has called this as often or is unresponsive.

        This rank sends heartbeats while it waits. In a second round the ranks tell each other which ranks have failed,
        so that a rank that was only late, and came after some had given it up, learns of it.

        Args:
            after: time without a heartbeat after which a rank is unresponsive, s.
            results: numbers for this rank's record, 16 at most.
            interrupted: returns whether to give up. Default: never.

        Returns:
            The records of all ranks, and the failed ranks: those that are unresponsive and did not call this, and those
            that another rank reports as failed, which may include this rank.

        Raises:
            InputError: there are more than 16 results.
            RankLostError: it was interrupted; this rank then has not called it.
        """
        slots = self._record["results"][0]
        if len(results) > len(slots):
            raise InputError(f"rendezvous: expected {len(slots)} results at most, found {len(results)}")
        slots[: len(results)] = results
        self._records.Sync()
        entered = int(self._record["rounds"][0])
        try:
            first, failed_first = self._wait_for_round(after, interrupted)
            self._report_failed(failed_first)
            records, failed_second = self._wait_for_round(after, interrupted)
        except RankLostError:
            self._record["rounds"] = entered
            raise
        self._report_failed([*failed_first, *failed_second])
        reported = [int(rank) - 1 for rank in records["failed"] if rank]
        records["results"] = first["results"]  # a rank may already have written those of its next call
        return records, sorted({*failed_first, *failed_second, *reported})

    def close(self, *, abandon: bool = False) -> None:
        """Free the windows; collective; a second call does nothing.

        Args:
            abandon: do not free them, which makes the call local: use it after ranks have failed. The process must then
                end without MPI_Finalize, which may wait for the dead ranks for ever. Default False.
        """
        if not self._open:
            return
        self._open = False
        if abandon:
            self._record["rounds"] = LEFT
            self.heartbeat()
            return
        barrier(self.comm)
        for request in self._requests.values():
            wait_without_spinning(request)
        self._records.Unlock_all()
        self._records.Free()
        self.states.close()

    def __enter__(self) -> PeerTable:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error on this rank the others do not come to a collective close: the end of the job frees it all.
        self.close(abandon=kind is not None)

    def _wait_for_round(self, after: float, interrupted: Callable[[], bool]) -> tuple[NDArray[np.void], list[int]]:
        """Do one round of `rendezvous`: return the records, and the unresponsive ranks that have not entered it."""
        self._record["rounds"] += 1
        current = int(self._record["rounds"][0])
        pause = 0.01
        while True:
            if interrupted():
                raise RankLostError("a rank has failed that this one waits for")
            self.heartbeat()
            unresponsive = self.unresponsive(after)
            records = self.records()
            done = records["rounds"] >= current
            failed = [rank for rank in unresponsive if not done[rank]]
            done[[self.comm.rank, *failed]] = True
            if done.all():
                return records, failed
            time.sleep(min(pause, after / 4))
            pause = min(1.2 * pause, 0.05)

    def _report_failed(self, ranks: Sequence[int]) -> None:
        if ranks:
            self._record["failed"] = 1 + min(ranks)
            self.heartbeat()

    def _refresh(self) -> None:
        """Request a record from every rank without a pending request, and store the records that arrive.

        A rank whose request from an earlier call is still pending is not waited for: it may be dead.
        """
        waiting = set()
        for rank in range(self.comm.size):
            if rank not in self._requests and not self.suspended():
                place = self._arriving[rank : rank + 1].view(np.uint8)
                self._requests[rank] = self._records.Rget((place, MPI.BYTE), rank, (0, place.size, MPI.BYTE))
                waiting.add(rank)
        deadline = time.monotonic() + _PATIENCE
        pause = 1e-5
        while True:
            for rank, request in list(self._requests.items()):
                if request.Test():
                    self._known[rank] = self._arriving[rank]
                    del self._requests[rank]
            if not waiting & self._requests.keys() or time.monotonic() > deadline:
                return
            time.sleep(pause)
            pause = min(2 * pause, 1e-3)
