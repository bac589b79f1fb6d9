"""The shared center: one vector, sharded over all ranks' memory, that every rank reads and adds to by itself."""

from __future__ import annotations

from types import TracebackType

import numpy as np
from mpi4py import MPI
from mpi4py.util.dtlib import from_numpy_dtype
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.rma.checks import check_center, check_vector
from lsam_hpc.rma.collective import barrier, same
from lsam_hpc.rma.counter import Cells
from lsam_hpc.rma.gate import Gate
from lsam_hpc.rma.layout import Layout
from lsam_hpc.rma.memory import check_shared_memory

CHUNK_BYTES = 1 << 20  # as fast as one message on one node, and others wait less
_SHARD, _TOTAL = 0, 1  # the versions: of each shard in its rank's memory, of all in rank 0's


class Center:
    """A vector y of `size` elements in `Win.Allocate` memory, a shard on each rank.

    Making and closing it is collective; `read`, `add`, `version` and `versions` need no other rank's help. The window
    is locked once, shared, for its whole life. Reads and adds are atomic per element: no add is lost, and a plain read
    that overlaps one may hold some of its elements and not others. A consistent read makes adds wait, and holds each
    wholly or not at all.

    Args:
        comm: the ranks that share it.
        size: number of elements.
        dtype: of the elements. Default float32.
        start: y at the start, shape (size,); each rank's own shard is taken from the rank's vector. Default: zeros.
        patience: seconds that a consistent read waits for adds to end. An add waits twice as long for a consistent read
            to end, and then goes on with a warning. Default 60.

    Raises:
        InputError: size is below 1, start has another shape, patience is not above 0, the ranks were given different
            ones, or a node's shared memory has no room.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        size: int,
        dtype: str = "float32",
        start: NDArray[np.generic] | None = None,
        patience: float = 60.0,
    ) -> None:
        check_center(comm, size, np.dtype(dtype).name, start)
        same(comm, "the center's patience", patience)
        if not patience > 0:
            raise InputError(f"center: expected a patience above 0 seconds, found {patience!r}")
        self.comm = comm
        self.dtype = np.dtype(dtype)
        self._type = from_numpy_dtype(self.dtype)
        self._layout = Layout(size, comm.size, max(1, CHUNK_BYTES // self.dtype.itemsize))
        low, high = self._layout.bounds(comm.rank)
        check_shared_memory(comm, (high - low) * self.dtype.itemsize, "the center")
        self._window = MPI.Win.Allocate((high - low) * self.dtype.itemsize, self.dtype.itemsize, comm=comm)
        if high > low:
            shard = np.asarray(self._window.tomemory()).view(self.dtype)
            shard[:] = 0 if start is None else start[low:high]
        self._window.Lock_all(MPI.MODE_NOCHECK)
        self._window.Sync()
        self._versions = Cells(comm, 2)  # its barrier also tells that every shard is filled
        self._gate = Gate(comm, patience)
        self._open = True

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._layout.size

    @property
    def version(self) -> int:
        """Number of adds so far, by all ranks."""
        return self._versions.value(0, _TOTAL)

    @property
    def wire_bytes(self) -> int:
        """Bytes that one read or one add moves."""
        return self.size * self.dtype.itemsize

    def versions(self) -> NDArray[np.int64]:
        """Return the number of adds that are complete in each rank's shard, shape (ranks,)."""
        return self._versions.values(_SHARD)

    def read(self, out: NDArray[np.generic], consistent: bool = False) -> int:
        """Copy y into `out`.

        Args:
            out: shape (size,), the center's dtype, contiguous.
            consistent: hold each add wholly or not at all, on all shards; all ranks' adds wait meanwhile. Default
                False: adds go on, and the copy may hold a part of one.

        Returns:
            A version that the copy holds at least; of a consistent one, exactly.

        Raises:
            InputError: `out` has another shape, dtype or layout.
            TimeoutError: an add that the consistent read waits for does not end (its rank is named), or the read took
                longer than twice the patience, and `out` may hold half an add.
        """
        check_vector("read", out, self.size, self.dtype)
        if not consistent:
            return self._read(out)
        with self._gate.snapshot():
            return self._read(out)

    def add(self, delta: NDArray[np.generic]) -> int:
        """Add `delta` to y.

        Args:
            delta: shape (size,), the center's dtype, contiguous.

        Returns:
            The number of adds before this one.

        Raises:
            InputError: `delta` has another shape, dtype or layout.
        """
        check_vector("add", delta, self.size, self.dtype)
        with self._gate.change():
            owners = tuple(self._layout.order(self.comm.rank))
            for rank in owners:
                for first, end, at in self._layout.chunks(rank):
                    place = (at, end - first, self._type)
                    self._window.Accumulate((delta[first:end], self._type), rank, place, MPI.SUM)
            self._window.Flush_all()  # one wait for all owners' help: with a wait for each, an add grows with the ranks
            for rank in owners:
                self._versions.bump(rank, _SHARD)
            self._versions.flush()
            return self._versions.add(0, _TOTAL)

    def set(self, vector: NDArray[np.generic], version: int) -> None:
        """Make y and its version what is given; every rank calls it with the same, and a barrier must follow.

        Args:
            vector: shape (size,), the center's dtype, contiguous.
            version: the number of adds that it holds.
        """
        check_vector("set", vector, self.size, self.dtype)
        for first, end, at in self._layout.chunks(self.comm.rank):
            self._window.Put((vector[first:end], self._type), self.comm.rank, (at, end - first, self._type))
        self._window.Flush(self.comm.rank)
        self._versions.set(self.comm.rank, _SHARD, version)
        if self.comm.rank == 0:
            self._versions.set(0, _TOTAL, version)

    def close(self) -> None:
        """Free the windows; collective; a second call does nothing."""
        if not self._open:
            return
        self._open = False
        barrier(self.comm)
        self._window.Unlock_all()
        self._window.Free()
        self._versions.close()
        self._gate.close()

    def __enter__(self) -> Center:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error on this rank the others are not on their way to a collective call: leave it to the job's end.
        if kind is None:
            self.close()

    def _read(self, out: NDArray[np.generic]) -> int:
        version = self.version
        for rank in self._layout.order(self.comm.rank):
            for first, end, at in self._layout.chunks(rank):
                # Not Get, which may take some bytes of an element before an add and some after it (docs/exchange.md).
                place = (at, end - first, self._type)
                self._window.Get_accumulate((None, 0, self._type), (out[first:end], self._type), rank, place, MPI.NO_OP)
        self._window.Flush_all()
        return version
