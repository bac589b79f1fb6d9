"""What every rank tells the others: a record of where it is, and its state, in windows that they read by themselves."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType

import numpy as np
from mpi4py import MPI
from mpi4py.util.dtlib import from_numpy_dtype
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.rma.center import CHUNK_BYTES
from lsam_hpc.rma.checks import check_vector
from lsam_hpc.rma.collective import barrier, same, wait
from lsam_hpc.rma.layout import Layout
from lsam_hpc.rma.memory import check_shared_memory

RECORD = np.dtype(
    [
        ("beats", "i8"),  # counts up while the rank lives
        ("step", "i8"),  # local steps taken
        ("total_step", "i8"),  # steps of all ranks, as this one last saw them
        ("loss", "f8"),  # smoothed mini-batch loss; NaN before there is one
        ("meetings", "i8"),  # rounds of `meet` that the rank has come to, two each; LEFT after it has closed
        ("lost", "i8"),  # the first rank that this one holds for lost, and one; 0: none
        ("published", "i8"),  # number of states published
        ("results", "f8", (16,)),  # what the rank ended with; NaN before
    ]
)
LEFT = 1 << 40
_STATE_AT = 64  # bytes; before the state is twice the number of publications, odd while one is being written
_TRIES = 3  # reads of a state that is being written
_PATIENCE = 0.2  # seconds to wait for records: ranks on other nodes answer within 60 ms if they have a progress thread


class Peers:
    """A record and, if asked for, a state of each rank, in `Win.Allocate` memory.

    A rank writes its own with plain stores, about a microsecond for a beat, and reads the others' without their help.
    Making and closing it is collective, nothing else is. One thread may beat, another publish, a third look.

    A rank that died is known by its beats, which stand still: MPI itself says nothing on one node, and between nodes
    what reads from a dead rank may never return. So records are asked for without waiting for ever; `read` has no such
    guard, and is for ranks that are not silent.

    Args:
        comm: the ranks.
        size: number of elements of a state. Default 0: records only.
        dtype: of a state. Default float32.

    Attributes:
        names: the host of each rank, for messages.
        torn: number of reads that gave a mixture of two states.

    Raises:
        InputError: size is below 0, the ranks were given different ones, or a node's shared memory has no room.
    """

    def __init__(self, comm: MPI.Intracomm, size: int = 0, dtype: str = "float32") -> None:
        same(comm, "the peers' size", size)
        same(comm, "the peers' dtype", np.dtype(dtype).name)
        if size < 0:
            raise InputError(f"peers: expected a size of 0 elements or more, found {size}")
        self.comm = comm
        self.dtype = np.dtype(dtype)
        self.torn = 0
        self.names: list[str] = comm.allgather(MPI.Get_processor_name())
        self._type = from_numpy_dtype(self.dtype)
        self._layout = Layout(size, 1, max(1, CHUNK_BYTES // self.dtype.itemsize))
        check_shared_memory(comm, RECORD.itemsize + _STATE_AT + self.state_bytes, "the peers")
        # Two windows: a flush may wait for all that is under way in a window, and what a dead rank owes never comes.
        self._records = MPI.Win.Allocate(RECORD.itemsize, 1, comm=comm)
        self._states = MPI.Win.Allocate(_STATE_AT + self.state_bytes, 1, comm=comm)
        self._record = np.asarray(self._records.tomemory()).view(RECORD)
        self._record[:] = 0
        self._record["loss"] = self._record["results"] = np.nan
        memory = np.asarray(self._states.tomemory())
        memory[:] = 0
        self._sequence, self._state = memory[:8].view(np.int64), memory[_STATE_AT:].view(self.dtype)
        # The last answer of each rank, what it is received into, and the request for the next one.
        self._known = np.repeat(self._record, comm.size)
        self._arriving = self._known.copy()
        self._asked: dict[int, MPI.Request] = {}
        self._heard = self._known["beats"].copy()  # at the last look for silent ranks
        self._still = np.zeros(comm.size)  # seconds that they had stood still by then
        self._looked: float | None = None
        self._look = threading.Lock()
        for window in (self._records, self._states):
            window.Lock_all(MPI.MODE_NOCHECK)
            window.Sync()
        barrier(comm)
        self._open = True

    @property
    def size(self) -> int:
        """Number of elements of a state."""
        return self._layout.size

    @property
    def state_bytes(self) -> int:
        """Bytes of a state."""
        return self.size * self.dtype.itemsize

    def beat(self, step: int, total_step: int, loss: float) -> None:
        """Tell that this rank lives, and where it is.

        Args:
            step: local steps taken.
            total_step: steps of all ranks.
            loss: smoothed mini-batch loss.
        """
        self._record["step"] = step
        self._record["total_step"] = total_step
        self._record["loss"] = loss
        self.live()

    def live(self) -> None:
        """Tell that this rank lives."""
        self._record["beats"] += 1
        self._records.Sync()  # the stores above are seen by others' Gets from here on

    def publish(self, state: NDArray[np.generic]) -> None:
        """Make a state the one that others read.

        Args:
            state: shape (size,), the peers' dtype, contiguous.

        Raises:
            InputError: it has another shape, dtype or layout.
        """
        check_vector("publish", state, self.size, self.dtype)
        self._sequence += 1
        self._states.Sync()
        self._state[:] = state
        self._states.Sync()
        self._sequence += 1
        self._states.Sync()
        self._record["published"] += 1
        self._records.Sync()

    def read(self, rank: int, out: NDArray[np.generic]) -> int:
        """Copy a rank's state into `out`.

        The copy may mix two states that were published one after the other, even within an element, if each try met a
        publication; `torn` counts these. Unlike the center's, this read takes no lock of MPI, so a rank that is killed
        in it holds up nobody.

        Args:
            rank: whose.
            out: shape (size,), the peers' dtype, contiguous.

        Returns:
            How many states the rank has published, at least; 0: none, and `out` means nothing.

        Raises:
            InputError: `out` has another shape, dtype or layout.
        """
        check_vector("read", out, self.size, self.dtype)
        after = self._sequence_of(rank)
        for _ in range(_TRIES):
            before = after
            for first, end, at in self._layout.chunks(0):
                place = (_STATE_AT + at * self.dtype.itemsize, end - first, self._type)
                self._states.Get((out[first:end], self._type), rank, place)
            self._states.Flush(rank)
            after = self._sequence_of(rank)
            if before == after and before % 2 == 0:
                break
        else:
            self.torn += 1
        return before // 2

    def records(self) -> NDArray[np.void]:
        """Return the records of all ranks, shape (ranks,), fields as in `RECORD`.

        Of a rank that does not answer within 0.2 s, or is dead, it is the last one that came.
        """
        with self._look:
            self._refresh()
            return self._known.copy()

    def silent(self, after: float) -> list[int]:
        """Return the ranks that have not closed and whose beats have stood still.

        The time counts from the first look, on this rank's clock. A gap between two looks counts for half of `after`
        at most: a job that was suspended as a whole must not take everyone for dead when it goes on.

        Args:
            after: for how long, s.
        """
        with self._look:
            self._refresh()
            now = time.monotonic()
            passed = 0.0 if self._looked is None else min(now - self._looked, after / 2)
            beats = self._known["beats"].copy()
            self._still = np.where(beats == self._heard, self._still + passed, 0.0)
            self._looked, self._heard = now, beats
            found = (self._still >= after) & (self._known["meetings"] < LEFT)
            found[self.comm.rank] = False
            return [int(rank) for rank in found.nonzero()[0]]

    def meet(self, after: float, results: Sequence[float] = ()) -> tuple[NDArray[np.void], list[int]]:
        """Wait, without spinning and with no collective call, until all ranks have come here as often, or are silent.

        This rank beats meanwhile, so that nobody takes it for lost. Then the ranks tell each other whom they miss, in a
        second round: one that was only late, and came after some had given it up, learns so.

        Args:
            after: how long beats may stand still, s.
            results: what the others shall read in this rank's record, 16 numbers at most.

        Returns:
            The records of all ranks, and the ranks that are lost: silent and not here, or named by another rank, which
            may be this one.

        Raises:
            InputError: there are more results.
        """
        places = self._record["results"][0]
        if len(results) > len(places):
            raise InputError(f"meet: expected {len(places)} results at most, found {len(results)}")
        places[: len(results)] = results
        self._records.Sync()
        _, missed = self._gather(after)
        self._name(missed)
        records, more = self._gather(after)
        self._name([*missed, *more])
        named = [int(rank) - 1 for rank in records["lost"] if rank]
        return records, sorted({*missed, *more, *named})

    def close(self, abandon: bool = False) -> None:
        """Free the window; collective; a second call does nothing.

        Args:
            abandon: leave the window to the end of the process, which is not collective: for when ranks were lost. The
                process must then end without MPI_Finalize, which may wait for the dead for ever.
        """
        if not self._open:
            return
        self._open = False
        if abandon:
            self._record["meetings"] = LEFT
            self.live()
            return
        barrier(self.comm)
        for request in self._asked.values():
            wait(request)
        for window in (self._records, self._states):
            window.Unlock_all()
            window.Free()

    def __enter__(self) -> Peers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error on this rank the others are not on their way to a collective call: leave it to the job's end.
        self.close(abandon=kind is not None)

    def _gather(self, after: float) -> tuple[NDArray[np.void], list[int]]:
        """Do one round of `meet`: return the records and the ranks that are silent and not here."""
        self._record["meetings"] += 1
        mine = int(self._record["meetings"][0])
        pause = 0.01
        while True:
            self.live()
            silent = self.silent(after)
            records = self.records()
            here = records["meetings"] >= mine
            lost = [rank for rank in silent if not here[rank]]
            here[[self.comm.rank, *lost]] = True
            if here.all():
                return records, lost
            time.sleep(min(pause, after / 4))
            pause = min(1.2 * pause, 0.05)

    def _name(self, lost: Sequence[int]) -> None:
        if lost:
            self._record["lost"] = 1 + min(lost)
            self.live()

    def _sequence_of(self, rank: int) -> int:
        found = np.empty(1, np.int64)
        self._states.Get(found, rank, (0, 1, MPI.INT64_T))
        self._states.Flush(rank)
        return int(found[0])

    def _refresh(self) -> None:
        """Ask every rank for its record but those that still owe an answer, and take in what comes.

        A rank that owes one from an earlier look is not waited for: it may be dead.
        """
        waiting = set()
        for rank in range(self.comm.size):
            if rank not in self._asked:
                place = self._arriving[rank : rank + 1].view(np.uint8)
                self._asked[rank] = self._records.Rget((place, MPI.BYTE), rank, (0, place.size, MPI.BYTE))
                waiting.add(rank)
        deadline = time.monotonic() + _PATIENCE
        pause = 1e-5
        while True:
            for rank, request in list(self._asked.items()):
                if request.Test():
                    self._known[rank] = self._arriving[rank]
                    del self._asked[rank]
            if not waiting & self._asked.keys() or time.monotonic() > deadline:
                return
            time.sleep(pause)
            pause = min(2 * pause, 1e-3)
