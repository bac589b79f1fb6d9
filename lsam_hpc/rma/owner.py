"""The owner's side of a center with 16 bits on the wire: its exact shard, its rounded mirror, and the inboxes."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from lsam_hpc.rma.counter import Cells
from lsam_hpc.rma.layout import Layout
from lsam_hpc.rma.memory import check_shared_memory
from lsam_hpc.rma.wire import Wire

BITS = MPI.UINT16_T  # MPI moves them and never computes with them


class Signals(Cells):
    """Cells that their owner looks at without an operation of MPI."""

    def raised(self) -> list[int]:
        """Return which of this rank's own numbers are not 0: if others changed them, at once or a little later.

        Plain loads: an operation would contend with those of other ranks, which over TCP takes them milliseconds.
        """
        self._window.Sync()
        numbers = np.asarray(self._window.tomemory()).view(np.int64).copy()  # others change them meanwhile
        return [int(cell) for cell in np.flatnonzero(numbers)]

    def put(self, cell: int, numbers: dict[int, int]) -> None:
        """Make the numbers in a cell of some ranks what is given; no other rank may change them meanwhile.

        Args:
            cell: alike on all of them.
            numbers: by rank.
        """
        given = {rank: np.array([number], np.int64) for rank, number in numbers.items()}
        for rank, number in given.items():
            self._window.Accumulate((number, MPI.INT64_T), rank, (cell, 1, MPI.INT64_T), MPI.REPLACE)
        self._window.Flush_all()  # once, as each wait is a way there and back


class Owner:
    """What a rank keeps of its shard, and the windows in which it meets the others.

    `window` has a row for each rank, as long as the shard: the rank's inbox, and in the owner's own row the mirror.
    `cells` has a flag for each rank, which is the number of adds in its inbox, and then `held`: the adds that the shard
    holds; `total`: on rank 0, all adds that were begun. A flag is raised by its sender when it is 0, and lowered by the
    owner. Making and closing it is collective; several threads of a rank may use it.

    Args:
        comm: the ranks.
        layout: of the vector.
        wire: form of the numbers in the window.
        start: y at the start, float32, or None for zeros.
    """

    def __init__(self, comm: MPI.Intracomm, layout: Layout, wire: Wire, start: NDArray[Any] | None) -> None:
        self._layout = layout
        self._wire = wire
        self._rank = comm.rank
        self._senders = {rank for rank in range(comm.size) if rank != comm.rank}
        low, high = layout.bounds(comm.rank)
        self._shard = np.zeros(high - low, np.float32) if start is None else start[low:high].copy()
        self._rounded = np.empty(high - low, wire.dtype)  # the shard, on its way into the mirror
        nbytes = 2 * comm.size * (high - low)
        check_shared_memory(comm, nbytes, "the center")
        self.window = MPI.Win.Allocate(nbytes, 2, comm=comm)
        self._rows = np.asarray(self.window.tomemory()).view(wire.dtype).reshape(comm.size, high - low)
        self._rows[:] = 0
        self.window.Lock_all(MPI.MODE_NOCHECK)
        self.held, self.total = comm.size, comm.size + 1
        self.cells = Signals(comm, comm.size + 2)
        self._folded = 0  # what `held` says
        self._lock = threading.Lock()
        self._renew()

    def fold(self, own: NDArray[Any] | None = None, adds: int = 0) -> None:
        """Add the full inboxes to the shard, and perhaps this rank's own part of a vector; renew the mirror.

        Args:
            own: shape (size,). Default: nothing.
            adds: that it holds.
        """
        with self._lock:
            # The look is a hint; the atomic operation tells that the data has come.
            senders = [cell for cell in self.cells.raised() if cell in self._senders]
            full = {rank: count for rank in senders if (count := self.cells.value(self._rank, rank))}
            if not full and own is None:
                return
            self.window.Sync()  # see the data that came before the flags
            for first, end, at in self._layout.chunks(self._rank):
                part = slice(at, at + end - first)
                for sender in full:
                    self._shard[part] += self._rows[sender, part]
                if own is not None:
                    self._shard[part] += own[first:end]
            self._folded += adds + sum(full.values())
            self._renew()
            for sender in full:
                self.cells.set(self._rank, sender, 0)

    def shard(self) -> NDArray[np.float32]:
        """Return a copy of the shard."""
        with self._lock:
            return self._shard.copy()

    def set(self, part: NDArray[Any], version: int) -> None:
        """Make the shard and its version what is given, and empty the inboxes."""
        with self._lock:
            for sender in self._senders:
                self.cells.set(self._rank, sender, 0)
            self._shard[:] = part
            self._folded = version
            self._renew()

    def close(self) -> None:
        """Free the windows; collective."""
        self.window.Unlock_all()
        self.window.Free()
        self.cells.close()

    def _renew(self) -> None:
        """Make the mirror what the shard is, and then say how many adds it holds."""
        for first, end, at in self._layout.chunks(self._rank):
            rounded = self._rounded[at : at + end - first]
            self._wire.encode(self._shard[at : at + end - first], rounded)
            # Others read meanwhile: see `Center`'s read. Plain stores are not atomic to it.
            place = (self._rank * self._rounded.size + at, end - first, BITS)
            self.window.Accumulate((rounded.view(np.uint16), BITS), self._rank, place, MPI.REPLACE)
        self.window.Flush(self._rank)
        self.cells.set(self._rank, self.held, self._folded)
