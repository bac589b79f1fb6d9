"""The shared center with 16 bits per transferred element; error feedback keeps what rounding takes."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.rma.center import CHUNK_BYTES
from lsam_hpc.rma.checks import check_center, check_vector
from lsam_hpc.rma.collective import barrier, raise_on_all, require_equal
from lsam_hpc.rma.collective_context import CollectiveContext
from lsam_hpc.rma.layout import Layout
from lsam_hpc.rma.progress import ProgressThread, require_threads
from lsam_hpc.rma.shard_owner import BITS, ShardOwner
from lsam_hpc.rma.wire_codec import WireCodec


class HalfPrecisionCenter(CollectiveContext):
    """A float32 vector y, sharded over the ranks, that is read and added to in 16 bits per element.

    MPI cannot add 16-bit numbers to float32 memory, so the owner of a shard does it. It keeps the shard in float32 and
    a rounded mirror of it, which others read. Each other rank has an inbox at the owner: it puts its rounded delta
    there and sets a flag; the owner adds full inboxes to the shard, updates the mirror and clears the flags. It does so
    in its own reads and adds, and otherwise in a helper thread (`ProgressThread`), which also provides MPI progress.

    The rounding error of a delta stays with the sender, in its residual, and is added to the next delta (error
    feedback; Seide et al. 2014, 1-bit SGD). A sender whose inbox is still full keeps the whole delta for that shard in
    the same way. So no rank waits, and y plus all residuals always equals the sum of all deltas, to float32 rounding.

    `read` returns y rounded to 16 bits. `gather` and `master` return it in float32.

    Memory for P elements on R ranks, bytes per rank: 6 P/R shard and its rounded form, 2 P mirror and inboxes (shared
    memory), 4 P residual, 2 P staging.

    Creating it, closing it and `gather` are collective. Several threads of a rank may use it; they take turns. Deltas
    must be finite: a NaN or an infinity stays in y or the residual for ever.

    Args:
        comm: the ranks that share it.
        size: number of elements P.
        wire_dtype: `"bfloat16"` (needs the package ml_dtypes) or `"float16"`: see `WireCodec`.
        start: initial y, float32, shape (size,); each rank initializes its own shard from its vector. Default: zeros.
        interval: seconds between two rounds of the helper thread. Default 1e-3.

    Raises:
        InputError: size is below 1, start has another shape or dtype, arguments differ between ranks, a node's shared
            memory has too little space, or ml_dtypes or MPI_THREAD_MULTIPLE is missing.
    """

    def __init__(
        self, comm: MPI.Intracomm, size: int, wire_dtype: str, start: NDArray[Any] | None = None, interval: float = 1e-3
    ) -> None:
        require_threads("a 16-bit wire_dtype")
        self._wire = raise_on_all(comm, lambda: WireCodec(wire_dtype))
        check_center(comm, size, wire_dtype, start)
        self.dtype = np.dtype(np.float32)
        start_dtype = self.dtype.name if start is None else start.dtype.name
        require_equal(comm, "the dtype of the center's start", start_dtype)
        if start_dtype != self.dtype.name:
            raise InputError(f"center: expected start of float32 for wire_dtype {wire_dtype}, found {start_dtype}")
        self.comm = comm
        self._layout = Layout(size, comm.size, CHUNK_BYTES // 2)
        self._owner = ShardOwner(comm, self._layout, self._wire, start)
        self._residual = np.zeros(size, self.dtype)
        self._staging = np.empty(size, self._wire.dtype)
        self._owed = np.zeros(comm.size, np.int64)  # per shard: adds kept in the residual only
        self._turn = threading.Lock()
        self._progress = ProgressThread(comm, interval, self._owner.apply_inboxes)
        barrier(comm)  # every mirror is initialized
        self._open = True

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._layout.size

    @property
    def version(self) -> int:
        """Number of adds started so far, by all ranks."""
        return self._owner.cells.value(0, self._owner.total)

    @property
    def wire_bytes(self) -> int:
        """Bytes that one read transfers, and at most one add."""
        return 2 * self.size

    @property
    def residual(self) -> NDArray[np.float32]:
        """Part of this rank's deltas that is not yet in y, shape (size,); a copy."""
        with self._turn:
            return self._residual.copy()

    def versions(self) -> NDArray[np.int64]:
        """Return the number of adds in each rank's shard, shape (ranks,); rounding errors are in the residuals."""
        return self._owner.cells.values(self._owner.held)

    def read(self, out: NDArray[Any]) -> int:
        """Copy y into `out`, rounded to 16 bits and clipped to the range of `wire_dtype`.

        Args:
            out: shape (size,), float32, contiguous.

        Returns:
            A lower bound of the copy's version.

        Raises:
            InputError: `out` has another shape, dtype or layout.
        """
        check_vector("read", out, self.size, self.dtype)
        with self._turn:
            self._owner.apply_inboxes()
            version = int(self.versions().min())
            for rank in self._layout.order(self.comm.rank):
                low, high = self._layout.bounds(rank)
                for first, end, at in self._layout.chunks(rank):
                    place = (rank * (high - low) + at, end - first, BITS)
                    result = (self._staging[first:end].view(np.uint16), BITS)
                    self._owner.window.Get_accumulate((None, 0, BITS), result, rank, place, MPI.NO_OP)
            self._owner.window.Flush_all()
            for rank in range(self.comm.size):
                for first, end, _ in self._layout.chunks(rank):
                    out[first:end] = self._staging[first:end]
        return version

    def add(self, delta: NDArray[Any]) -> int:
        """Add `delta` to y.

        Args:
            delta: shape (size,), float32, contiguous, finite.

        Returns:
            The number of adds before this one.

        Raises:
            InputError: `delta` has another shape, dtype or layout.
        """
        check_vector("add", delta, self.size, self.dtype)
        with self._turn:
            # Count before any shard contains it, so that `read` never returns a version above `version`.
            before = self._owner.cells.add(0, self._owner.total)
            me, *others = self._layout.order(self.comm.rank)
            self._owner.apply_inboxes(delta, 1)
            full = self._owner.cells.values(me)
            for rank in others:
                self._send(rank, delta, full=bool(full[rank]))
            self._owed[others] += 1
            empty = [rank for rank in others if not full[rank]]
            self._owner.window.Flush_all()  # the data must arrive before the flags
            self._owner.cells.put(me, {rank: int(self._owed[rank]) for rank in empty})
            self._owed[empty] = 0
        return before

    def set(self, vector: NDArray[Any], version: int) -> None:
        """Replace y and its version and discard inboxes and residuals; every rank passes the same values.

        No rank may be in an add, and a barrier must follow.

        Args:
            vector: new y, shape (size,), float32, contiguous.
            version: number of adds that it contains.
        """
        check_vector("set", vector, self.size, self.dtype)
        low, high = self._layout.bounds(self.comm.rank)
        with self._turn:
            self._residual[:] = 0
            self._owed[:] = 0
            self._set(vector[low:high], version)

    def set_version(self, version: int) -> None:
        """Set the version; every rank passes the same, no rank may be in an add, and a barrier must follow."""
        with self._turn:
            self._set(self._owner.shard(), version)

    def master(self) -> tuple[NDArray[np.float32], int, int]:
        """Return a float32 copy of this rank's shard and the range (low, high) of its elements.

        The ranks' residuals are not in it.
        """
        if self._open:
            self._owner.apply_inboxes()
        return (self._owner.shard(), *self._layout.bounds(self.comm.rank))

    def gather(self, out: NDArray[Any]) -> int:
        """Copy y into `out` in float32, including all adds that started before; collective.

        It first adds the residuals to y, in float32, and sets them to zero.

        Args:
            out: shape (size,), float32, contiguous.

        Returns:
            The version, the same on all ranks: the copy contains these adds and no other.

        Raises:
            InputError: `out` has another shape, dtype or layout.
        """
        check_vector("gather", out, self.size, self.dtype)
        me = self.comm.rank
        low, high = self._layout.bounds(me)
        with self._turn:
            barrier(self.comm)  # no rank is in an add; no rank returns before all residuals are summed
            version = self.version
            for rank in range(self.comm.size):
                for first, end, _ in self._layout.chunks(rank):
                    self.comm.Reduce(self._residual[first:end], out[first:end] if rank == me else None, MPI.SUM, rank)
            owed = np.empty_like(self._owed)
            self.comm.Allreduce(self._owed, owed)
            self._residual[:] = 0
            self._owed[:] = 0
            self._owner.apply_inboxes(out, int(owed[me]))
            # A rank adds again only after it has received this shard, so the shard contains no later add.
            out[low:high] = self._owner.shard()
            for rank in range(self.comm.size):
                for first, end, _ in self._layout.chunks(rank):
                    self.comm.Bcast(out[first:end], rank)
        return version

    def salvage(self, rank: int, out: NDArray[np.float32]) -> None:
        """Add a rank's shard to its place in `out`, without MPI's locks, which a rank that failed may hold.

        Args:
            rank: this one, whose residual is added too; if all ranks are on one node, also one that has failed: of it
                only the rounded mirror is there, without the deltas in its inboxes and its residual.
            out: shape (size,), float32, contiguous.
        """
        low, high = self._layout.bounds(rank)
        if rank == self.comm.rank:
            self._owner.apply_inboxes()
            out[low:high] += self._owner.shard()
            with self._turn:
                out += self._residual
                self._residual[:] = 0
            return
        for first, end, at in self._layout.chunks(rank):
            place = (rank * (high - low) + at, end - first, BITS)
            self._owner.window.Get((self._staging[first:end].view(np.uint16), BITS), rank, place)
        self._owner.window.Flush(rank)
        out[low:high] += self._staging[low:high]

    def bounds(self, rank: int) -> tuple[int, int]:
        """Return the half-open range of the elements in a rank's shard."""
        return self._layout.bounds(rank)

    def glance_version(self) -> int:
        """Return the version without MPI's locks, on rank 0 or, if all ranks are on one node, on any."""
        return self._owner.cells.glance(0, self._owner.total)

    def abandon(self) -> None:
        """End the helper thread without the other ranks, of which some have failed; it may be blocked in MPI."""
        self._progress.abandon()

    def close(self) -> None:
        """Add full inboxes, end the helper thread and free the windows; collective; a second call does nothing.

        Residuals are not added: call `gather` before if you need y.

        Raises:
            Exception: what the helper thread raised, if anything.
        """
        if not self._open:
            return
        self._open = False
        barrier(self.comm)
        self._owner.apply_inboxes()
        try:
            self._progress.close()
        finally:
            self._owner.close()

    def _set(self, shard: NDArray[Any], version: int) -> None:
        self._owner.set(shard, version)
        if self.comm.rank == 0:
            self._owner.cells.set(0, self._owner.total, version)

    def _send(self, rank: int, delta: NDArray[Any], *, full: bool) -> None:
        """Put a shard's part of `delta` into the inbox at its owner, or into the residual if the inbox is full."""
        low, high = self._layout.bounds(rank)
        for first, end, at in self._layout.chunks(rank):
            residual, sent = self._residual[first:end], self._staging[first:end]
            residual += delta[first:end]
            if not full:
                self._wire.encode(residual, sent)
                residual -= sent
                place = (self.comm.rank * (high - low) + at, end - first, BITS)
                self._owner.window.Put((sent.view(np.uint16), BITS), rank, place)
