"""The owner's side of `HalfPrecisionCenter`: the exact shard, its rounded mirror, and the inboxes."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from lsam_hpc.rma.counter import AtomicArray
from lsam_hpc.rma.layout import Layout
from lsam_hpc.rma.memory import check_shared_memory
from lsam_hpc.rma.wire_codec import WireCodec

BITS = MPI.UINT16_T  # MPI only copies them: it never computes with them


class Signals(AtomicArray):
    """Atomic flags that their owner can inspect with plain loads."""

    def raised(self) -> list[int]:
        """Return this rank's own cells that are not 0; other ranks' changes may become visible a little later.

        Plain loads: an atomic operation would delay those of other ranks, over TCP by milliseconds.
        """
        self._window.Sync()
        values = np.asarray(self._window.tomemory()).view(np.int64).copy()  # others may change them at the same time
        return [int(cell) for cell in np.flatnonzero(values)]

    def put(self, cell: int, numbers: dict[int, int]) -> None:
        """Set one cell on several ranks; no other rank may change it at the same time.

        Args:
            cell: index of the cell, the same on all ranks.
            numbers: new value for each rank.
        """
        buffers = {rank: np.array([number], np.int64) for rank, number in numbers.items()}
        for rank, buffer in buffers.items():
            self._window.Accumulate((buffer, MPI.INT64_T), rank, (cell, 1, MPI.INT64_T), MPI.REPLACE)
        self._window.Flush_all()  # one flush for all ranks, as each flush costs a network round trip


class ShardOwner:
    """A rank's shard and the windows through which the other ranks read it and add to it.

    `window` has one row per rank, as long as the shard: the inbox of that rank; the owner's own row is the mirror.
    `cells` has one flag per rank, the number of adds in its inbox, then `held`, the number of adds in the shard, and
    `total`, the number of adds started by all ranks (rank 0 only). A sender sets its flag when it is 0, and the owner
    clears it. Creating and closing it is collective; several threads of a rank may use it.

    Args:
        comm: the ranks.
        layout: how the vector is sharded.
        wire: codec of the numbers in the window.
        start: initial y, float32, or None for zeros.
    """

    def __init__(self, comm: MPI.Intracomm, layout: Layout, wire: WireCodec, start: NDArray[Any] | None) -> None:
        self._layout = layout
        self._wire = wire
        self._rank = comm.rank
        self._senders = {rank for rank in range(comm.size) if rank != comm.rank}
        low, high = layout.bounds(comm.rank)
        self._shard = np.zeros(high - low, np.float32) if start is None else start[low:high].copy()
        self._rounded = np.empty(high - low, wire.dtype)  # buffer for the update of the mirror
        nbytes = 2 * comm.size * (high - low)
        check_shared_memory(comm, nbytes, "the center")
        self.window = MPI.Win.Allocate(nbytes, 2, comm=comm)
        self._rows = np.asarray(self.window.tomemory()).view(wire.dtype).reshape(comm.size, high - low)
        self._rows[:] = 0
        self.window.Lock_all(MPI.MODE_NOCHECK)
        self.held, self.total = comm.size, comm.size + 1
        self.cells = Signals(comm, comm.size + 2)
        self._applied = 0  # number of adds in the shard, copied to `held`
        self._lock = threading.Lock()
        self._update_mirror()

    def apply_inboxes(self, delta: NDArray[Any] | None = None, adds: int = 0) -> None:
        """Add the full inboxes, and optionally this rank's own delta, to the shard; update the mirror.

        Args:
            delta: shape (size,). Default: none.
            adds: number of adds that `delta` contains. Default 0.
        """
        with self._lock:
            # `raised` is a hint; only the atomic read guarantees that the data has arrived.
            senders = [cell for cell in self.cells.raised() if cell in self._senders]
            full = {rank: count for rank in senders if (count := self.cells.value(self._rank, rank))}
            if not full and delta is None:
                return
            self.window.Sync()  # make the data that was put before the flags visible
            for first, end, at in self._layout.chunks(self._rank):
                part = slice(at, at + end - first)
                for sender in full:
                    self._shard[part] += self._rows[sender, part]
                if delta is not None:
                    self._shard[part] += delta[first:end]
            self._applied += adds + sum(full.values())
            self._update_mirror()
            for sender in full:
                self.cells.set(self._rank, sender, 0)

    def shard(self) -> NDArray[np.float32]:
        """Return a copy of the shard."""
        with self._lock:
            return self._shard.copy()

    def set(self, part: NDArray[Any], version: int) -> None:
        """Replace the shard and its version, and empty the inboxes."""
        with self._lock:
            for sender in self._senders:
                self.cells.set(self._rank, sender, 0)
            self._shard[:] = part
            self._applied = version
            self._update_mirror()

    def close(self) -> None:
        """Free the windows; collective."""
        self.window.Unlock_all()
        self.window.Free()
        self.cells.close()

    def _update_mirror(self) -> None:
        """Copy the rounded shard into the mirror, then update `held`."""
        for first, end, at in self._layout.chunks(self._rank):
            rounded = self._rounded[at : at + end - first]
            self._wire.encode(self._shard[at : at + end - first], rounded)
            # Others may read at the same time, and plain stores are not atomic to their Get_accumulate.
            place = (self._rank * self._rounded.size + at, end - first, BITS)
            self.window.Accumulate((rounded.view(np.uint16), BITS), self._rank, place, MPI.REPLACE)
        self.window.Flush(self._rank)
        self.cells.set(self._rank, self.held, self._applied)
