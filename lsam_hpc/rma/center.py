"""The shared center: one vector, sharded over all ranks' memory, that any rank reads and adds to without help."""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI
from mpi4py.util.dtlib import from_numpy_dtype
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.rma.checks import check_center, check_vector
from lsam_hpc.rma.collective import barrier, require_equal
from lsam_hpc.rma.collective_context import CollectiveContext
from lsam_hpc.rma.counter import AtomicArray
from lsam_hpc.rma.layout import Layout
from lsam_hpc.rma.memory import check_shared_memory
from lsam_hpc.rma.snapshot_lock import SnapshotLock

CHUNK_BYTES = 1 << 20  # on one node as fast as a single message, and other ranks wait less
_SHARD, _TOTAL = 0, 1  # cells: the version of a rank's own shard; the version of the vector (rank 0 only)


class Center(CollectiveContext):
    """A vector y of `size` elements in `Win.Allocate` memory, one shard on each rank.

    Creating and closing it is collective; `read`, `add`, `version` and `versions` need no other rank's help. The window
    is locked once, in shared mode, for its whole life. Reads and adds are atomic per element: no add is lost. A plain
    read that overlaps an add may contain it in some elements and not in others. A consistent read blocks adds, and
    contains each add completely or not at all.

    Args:
        comm: the ranks that share it.
        size: number of elements.
        dtype: type of the elements. Default float32.
        start: initial y, shape (size,); each rank initializes its own shard from its vector. Default: zeros.
        patience: seconds that a consistent read waits for adds to finish. An add waits twice as long for a consistent
            read to finish, then continues with a warning. Default 60.

    Raises:
        InputError: size is below 1, start has another shape, patience is not above 0, arguments differ between ranks,
            or a node's shared memory has too little space.
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
        require_equal(comm, "the center's patience", patience)
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
        self._versions = AtomicArray(comm, 2)  # its barrier also ensures that every shard is initialized
        self._lock = SnapshotLock(comm, patience)
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

    def read(self, out: NDArray[np.generic], *, consistent: bool = False) -> int:
        """Copy y into `out`.

        Args:
            out: shape (size,), the center's dtype, contiguous.
            consistent: contain each add completely or not at all, on all shards; all ranks' adds wait meanwhile.
                Default False: adds continue, and the copy may contain a part of one.

        Returns:
            The version of the copy: exact if consistent, else a lower bound.

        Raises:
            InputError: `out` has another shape, dtype or layout.
            TimeoutError: an add did not finish in time for the consistent read (its rank is named), or the read took
                longer than twice the patience, so that `out` may contain a part of an add.
        """
        check_vector("read", out, self.size, self.dtype)
        if not consistent:
            return self._read(out)
        with self._lock.exclusive():
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
        with self._lock.shared():
            owners = tuple(self._layout.order(self.comm.rank))
            for rank in owners:
                for first, end, at in self._layout.chunks(rank):
                    place = (at, end - first, self._type)
                    self._window.Accumulate((delta[first:end], self._type), rank, place, MPI.SUM)
            self._window.Flush_all()  # one wait for all owners: a wait for each would grow with the ranks
            for rank in owners:
                self._versions.increment(rank, _SHARD)
            self._versions.flush()
            return self._versions.add(0, _TOTAL)

    def set(self, vector: NDArray[np.generic], version: int) -> None:
        """Replace y and its version; every rank passes the same values, and a barrier must follow.

        Args:
            vector: new y, shape (size,), the center's dtype, contiguous.
            version: number of adds that it contains.
        """
        check_vector("set", vector, self.size, self.dtype)
        for first, end, at in self._layout.chunks(self.comm.rank):
            self._window.Put((vector[first:end], self._type), self.comm.rank, (at, end - first, self._type))
        self._window.Flush(self.comm.rank)
        self.set_version(version)

    def salvage(self, rank: int, out: NDArray[Any]) -> None:
        """Add a rank's shard to its place in `out`, without MPI's locks, which a rank that failed may hold.

        Args:
            rank: this one; if all ranks are on one node, also one that has failed: its memory is still there.
            out: shape (size,), the center's dtype, contiguous.
        """
        low, high = self._layout.bounds(rank)
        if rank == self.comm.rank:
            self._window.Sync()
            out[low:high] += np.asarray(self._window.tomemory()).view(self.dtype)[: high - low]
            return
        shard = np.empty(high - low, self.dtype)
        for first, end, at in self._layout.chunks(rank):
            self._window.Get((shard[at : at + end - first], self._type), rank, (at, end - first, self._type))
        self._window.Flush(rank)
        out[low:high] += shard

    def set_version(self, version: int) -> None:
        """Set the version; every rank passes the same, and a barrier must follow."""
        self._versions.set(self.comm.rank, _SHARD, version)
        if self.comm.rank == 0:
            self._versions.set(0, _TOTAL, version)

    def abandon(self) -> None:
        """Do nothing: the windows stay as they are when ranks have failed."""

    def bounds(self, rank: int) -> tuple[int, int]:
        """Return the half-open range of the elements in a rank's shard."""
        return self._layout.bounds(rank)

    def glance_version(self) -> int:
        """Return the version without MPI's locks, on rank 0 or, if all ranks are on one node, on any."""
        return self._versions.glance(0, _TOTAL)

    def close(self) -> None:
        """Free the windows; collective; a second call does nothing."""
        if not self._open:
            return
        self._open = False
        barrier(self.comm)
        self._window.Unlock_all()
        self._window.Free()
        self._versions.close()
        self._lock.close()

    def __repr__(self) -> str:
        return f"Center({self.size} x {self.dtype.name} on {self.comm.size} ranks{'' if self._open else ', closed'})"

    def _read(self, out: NDArray[np.generic]) -> int:
        version = self.version
        for rank in self._layout.order(self.comm.rank):
            for first, end, at in self._layout.chunks(rank):
                # Not Get: it may mix bytes of an element from before and after an add (docs/explanation/exchange.md).
                place = (at, end - first, self._type)
                self._window.Get_accumulate((None, 0, self._type), (out[first:end], self._type), rank, place, MPI.NO_OP)
        self._window.Flush_all()
        return version
