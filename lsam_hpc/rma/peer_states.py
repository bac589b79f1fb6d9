"""States that ranks publish, in a window that is read without the owner's help."""

from __future__ import annotations

import numpy as np
from mpi4py import MPI
from mpi4py.util.dtlib import from_numpy_dtype
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.rma.center import CHUNK_BYTES
from lsam_hpc.rma.checks import check_vector
from lsam_hpc.rma.collective import require_equal
from lsam_hpc.rma.layout import Layout
from lsam_hpc.rma.memory import check_shared_memory

_STATE_AT = 64  # offset of the state, bytes; at offset 0 is twice the number of publications, odd during one
_TRIES = 3  # attempts to read a state that is being written


class PeerStates:
    """A state of each rank, in `Win.Allocate` memory; making and closing it is collective.

    Making it needs a barrier before others read, closing it one after they have read. A read from a dead rank may never
    return: read from responsive ranks only. One thread may publish while another reads.

    Args:
        comm: the ranks.
        size: number of elements of a state.
        dtype: type of the elements.

    Attributes:
        torn_reads: number of reads that returned a mixture of two states.

    Raises:
        InputError: size is below 0, arguments differ between ranks, or a node's shared memory has too little space.
    """

    def __init__(self, comm: MPI.Intracomm, size: int, dtype: str) -> None:
        require_equal(comm, "the peers' size", size)
        require_equal(comm, "the peers' dtype", np.dtype(dtype).name)
        if size < 0:
            raise InputError(f"peers: expected a size of 0 elements or more, found {size}")
        self.size = size
        self.dtype = np.dtype(dtype)
        self.torn_reads = 0
        self._type = from_numpy_dtype(self.dtype)
        self._layout = Layout(size, 1, max(1, CHUNK_BYTES // self.dtype.itemsize))
        check_shared_memory(comm, _STATE_AT + self.bytes, "the peers")
        self._window = MPI.Win.Allocate(_STATE_AT + self.bytes, 1, comm=comm)
        memory = np.asarray(self._window.tomemory())
        memory[:] = 0
        self._sequence, self._state = memory[:8].view(np.int64), memory[_STATE_AT:].view(self.dtype)
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._window.Sync()

    @property
    def bytes(self) -> int:
        """Bytes of a state."""
        return self.size * self.dtype.itemsize

    def publish(self, state: NDArray[np.generic]) -> None:
        """Replace the state that others read from this rank.

        Args:
            state: shape (size,), the peers' dtype, contiguous.

        Raises:
            InputError: `state` has another shape, dtype or layout.
        """
        check_vector("publish", state, self.size, self.dtype)
        self._sequence += 1
        self._window.Sync()
        self._state[:] = state
        self._window.Sync()
        self._sequence += 1
        self._window.Sync()

    def read(self, rank: int, out: NDArray[np.generic]) -> int:
        """Copy a rank's state into `out`.

        If each of 3 attempts overlaps a publication, the copy may mix two successive states, even within an element;
        `torn_reads` counts such reads. Unlike `Center.read`, this takes no MPI-internal lock, so a rank that is killed
        in it blocks no other.

        Args:
            rank: rank to read from.
            out: shape (size,), the peers' dtype, contiguous.

        Returns:
            A lower bound of the number of states that the rank has published; if 0, `out` is undefined.

        Raises:
            InputError: `out` has another shape, dtype or layout.
        """
        check_vector("read", out, self.size, self.dtype)
        after = self._sequence_of(rank)
        for _ in range(_TRIES):
            before = after
            for first, end, at in self._layout.chunks(0):
                place = (_STATE_AT + at * self.dtype.itemsize, end - first, self._type)
                self._window.Get((out[first:end], self._type), rank, place)
            self._window.Flush(rank)
            after = self._sequence_of(rank)
            if before == after and before % 2 == 0:
                break
        else:
            self.torn_reads += 1
        return before // 2

    def take_over(self, before: PeerStates) -> None:
        """Publish this rank's state of another window, if there is one."""
        if before._sequence[0]:
            self.publish(before._state)

    def close(self) -> None:
        """Free the window; collective."""
        self._window.Unlock_all()
        self._window.Free()

    def _sequence_of(self, rank: int) -> int:
        sequence = np.empty(1, np.int64)
        self._window.Get(sequence, rank, (0, 1, MPI.INT64_T))
        self._window.Flush(rank)
        return int(sequence[0])
