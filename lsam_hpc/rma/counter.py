"""Whole numbers in windows that every rank reads and changes by itself, in atomic operations."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from lsam_hpc.rma.collective import barrier

_TYPE = MPI.INT64_T  # operations are atomic to each other if their types are the same


class Cells:
    """int64 numbers in the memory of each rank; making and closing it is collective, nothing else is.

    Where ranks change a cell at the same time, they must all do it in one way, by `add` and `bump` or by `swap`: MPI
    promises no more unless it is told to (`accumulate_ops`).

    Args:
        comm: the ranks that share them.
        count: how many each rank holds. All are 0 at first.
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
        """Add to a number and return what it was before."""
        return self._fetch(rank, cell, amount, MPI.SUM)

    def value(self, rank: int, cell: int) -> int:
        """Return a number as it is now."""
        return self._fetch(rank, cell, 0, MPI.NO_OP)

    def set(self, rank: int, cell: int, value: int) -> None:
        """Make a number what is given; no other rank may change it meanwhile."""
        self._fetch(rank, cell, value, MPI.REPLACE)

    def swap(self, rank: int, cell: int, expected: int, value: int) -> int:
        """Make a number what is given if it is what is expected, and return what it was.

        Open MPI before 5 crashes here (compare-and-swap on `Win.Allocate` memory).
        """
        old, new, found = np.array([expected], np.int64), np.array([value], np.int64), np.empty(1, np.int64)
        self._window.Compare_and_swap((new, _TYPE), (old, _TYPE), (found, _TYPE), rank, cell)
        self._window.Flush(rank)
        return int(found[0])

    def bump(self, rank: int, cell: int) -> None:
        """Add one to a number, at the latest when `flush` returns."""
        self._window.Accumulate((self._one, _TYPE), rank, (cell, 1, _TYPE), MPI.SUM)

    def flush(self) -> None:
        """Wait until all changes made by this rank are done."""
        self._window.Flush_all()

    def values(self, cell: int) -> NDArray[np.int64]:
        """Return all ranks' numbers in a cell, shape (ranks,)."""
        found = np.empty(self.comm.size, np.int64)
        for rank in range(self.comm.size):
            place = (found[rank : rank + 1], _TYPE)
            self._window.Fetch_and_op((self._one, _TYPE), place, rank, cell, MPI.NO_OP)
        self._window.Flush_all()
        return found

    def close(self) -> None:
        """Free the window; collective; a second call does nothing."""
        if not self._open:
            return
        self._open = False
        barrier(self.comm)
        self._window.Unlock_all()
        self._window.Free()

    def _fetch(self, rank: int, cell: int, amount: int, op: MPI.Op) -> int:
        given, found = np.array([amount], np.int64), np.empty(1, np.int64)
        self._window.Fetch_and_op((given, _TYPE), (found, _TYPE), rank, cell, op)
        self._window.Flush(rank)
        return int(found[0])


class Counter:
    """An int64 in rank 0's memory that all ranks can draw from; making and closing it is collective, nothing else is.

    Args:
        comm: the ranks that share it.
        start: its first value.
    """

    def __init__(self, comm: MPI.Intracomm, start: int = 0) -> None:
        self._cells = Cells(comm, 1)
        self.set(start)
        barrier(comm)

    def add(self, amount: int = 1) -> int:
        """Add to the number in one atomic operation and return what it was before."""
        return self._cells.add(0, 0, amount)

    @property
    def value(self) -> int:
        """The number now."""
        return self._cells.value(0, 0)

    def set(self, value: int) -> None:
        """Make the number what is given; every rank calls it with the same, and a barrier must follow."""
        if self._cells.comm.rank == 0:
            self._cells.set(0, 0, value)

    def close(self) -> None:
        """Free the window; collective; a second call does nothing."""
        self._cells.close()
