"""Integers in MPI windows that any rank reads and changes by atomic operations, without help."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from lsam_hpc.rma.collective import barrier

_TYPE = MPI.INT64_T  # MPI makes operations atomic to each other only if their datatypes are the same


class AtomicArray:
    """`count` int64 cells in the memory of each rank; only creating and closing it is collective.

    Ranks that change a cell at the same time must all use the same operation: either `add` and `increment`, or
    `compare_and_swap`. MPI guarantees atomicity between different operations only with the info key `accumulate_ops`.

    Args:
        comm: the ranks that share the cells.
        count: number of cells per rank, initially 0.
    """

    def __init__(self, comm: MPI.Intracomm, count: int) -> None:
        self.comm = comm
        self._window = MPI.Win.Allocate(8 * count, 8, comm=comm)
        np.asarray(self._window.tomemory()).view(np.int64)[:] = 0
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._window.Sync()
        self._one = np.ones(1, np.int64)
        barrier(comm)
        self._open = True

    def add(self, rank: int, cell: int, amount: int = 1) -> int:
        """Add to a cell and return its previous value."""
        return self._fetch(rank, cell, amount, MPI.SUM)

    def value(self, rank: int, cell: int) -> int:
        """Return the current value of a cell."""
        return self._fetch(rank, cell, 0, MPI.NO_OP)

    def glance(self, rank: int, cell: int) -> int:
        """Return a cell's value without MPI's lock for atomic operations, which a rank that failed may hold."""
        if rank == self.comm.rank:
            self._window.Sync()
            return int(np.asarray(self._window.tomemory()).view(np.int64)[cell])
        value = np.empty(1, np.int64)
        self._window.Get((value, _TYPE), rank, (cell, 1, _TYPE))
        self._window.Flush(rank)
        return int(value[0])

    def set(self, rank: int, cell: int, value: int) -> None:
        """Set a cell; no other rank may change it at the same time."""
        self._fetch(rank, cell, value, MPI.REPLACE)

    def compare_and_swap(self, rank: int, cell: int, expected: int, value: int) -> int:
        """Set a cell to `value` if it equals `expected`; return its previous value.

        Open MPI before 5 crashes here (compare-and-swap on `Win.Allocate` memory).
        """
        old, new, previous = np.array([expected], np.int64), np.array([value], np.int64), np.empty(1, np.int64)
        self._window.Compare_and_swap((new, _TYPE), (old, _TYPE), (previous, _TYPE), rank, cell)
        self._window.Flush(rank)
        return int(previous[0])

    def increment(self, rank: int, cell: int) -> None:
        """Add one to a cell; complete at the latest when `flush` returns."""
        self._window.Accumulate((self._one, _TYPE), rank, (cell, 1, _TYPE), MPI.SUM)

    def flush(self) -> None:
        """Wait until all changes made by this rank are complete."""
        self._window.Flush_all()

    def values(self, cell: int) -> NDArray[np.int64]:
        """Return a cell's value on each rank, shape (ranks,)."""
        values = np.empty(self.comm.size, np.int64)
        for rank in range(self.comm.size):
            target = (values[rank : rank + 1], _TYPE)
            self._window.Fetch_and_op((self._one, _TYPE), target, rank, cell, MPI.NO_OP)
        self._window.Flush_all()
        return values

    def close(self) -> None:
        """Free the window; collective; a second call does nothing."""
        if not self._open:
            return
        self._open = False
        barrier(self.comm)
        self._window.Unlock_all()
        self._window.Free()

    def _fetch(self, rank: int, cell: int, amount: int, op: MPI.Op) -> int:
        operand, previous = np.array([amount], np.int64), np.empty(1, np.int64)
        self._window.Fetch_and_op((operand, _TYPE), (previous, _TYPE), rank, cell, op)
        self._window.Flush(rank)
        return int(previous[0])


class Counter:
    """A shared int64 in rank 0's memory; only creating and closing it is collective.

    Args:
        comm: the ranks that share it.
        start: initial value. Default 0.
    """

    def __init__(self, comm: MPI.Intracomm, start: int = 0) -> None:
        self._cells = AtomicArray(comm, 1)
        self.set(start)
        barrier(comm)

    def add(self, amount: int = 1) -> int:
        """Add atomically and return the previous value."""
        return self._cells.add(0, 0, amount)

    @property
    def value(self) -> int:
        """The current value."""
        return self._cells.value(0, 0)

    def glance(self) -> int:
        """Return the value as `AtomicArray.glance` does."""
        return self._cells.glance(0, 0)

    def set(self, value: int) -> None:
        """Set the value; every rank passes the same, and a barrier must follow."""
        if self._cells.comm.rank == 0:
            self._cells.set(0, 0, value)

    def close(self) -> None:
        """Free the window; collective; a second call does nothing."""
        self._cells.close()
