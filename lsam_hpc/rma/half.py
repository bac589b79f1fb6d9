"""The shared center with half the bytes on the wire, and nothing lost in the sum."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.rma.center import CHUNK_BYTES
from lsam_hpc.rma.checks import check_center, check_vector
from lsam_hpc.rma.collective import agree, barrier, same
from lsam_hpc.rma.layout import Layout
from lsam_hpc.rma.owner import BITS, Owner
from lsam_hpc.rma.progress import Progress, require_threads
from lsam_hpc.rma.wire import Wire


class HalfCenter:
    """A float32 vector y, sharded over the ranks, that is read and added to in 16 bits per element.

    MPI cannot add 16-bit numbers to float32 memory, so the owner of a shard does it. It keeps the shard in float32 and
    offers a rounded mirror of it, which others read. Each other rank has an inbox at the owner: it puts its delta
    there, rounded, and raises a flag; the owner adds what it finds to the shard, renews the mirror and lowers the flag.
    It does so in its own reads and adds, and otherwise in a helper thread (`Progress`), which also keeps MPI going.

    What rounding takes from a delta stays with the sender, in its residual, and goes with the next one (error feedback;
    Seide et al. 2014, 1-bit SGD). A sender that finds its inbox still full keeps the whole delta for that shard in the
    same way. So nobody waits, and y plus all residuals is always the sum of all deltas, to float32 rounding.

    `read` gives y rounded to the nearest number of the wire. `gather` and `master` give it in float32.

    Memory for P elements on R ranks, bytes per rank: 6 P/R shard and its rounded form, 2 P mirror and inboxes (shared
    memory), 4 P residual, 2 P staging.

    Making and closing it is collective, and `gather` is. Several threads of a rank may use it; they take turns. Deltas
    must be finite: what is not stays for good.

    Args:
        comm: the ranks that share it.
        size: number of elements P.
        wire_dtype: `"bfloat16"` (needs the package ml_dtypes) or `"float16"`: see `Wire`.
        start: y at the start, float32, shape (size,); each rank's own shard is taken from the rank's vector. Default:
            zeros.
        interval: seconds between two rounds of the helper thread. Default 1e-3.

    Raises:
        InputError: a size below 1, a start of another shape or dtype, arguments that differ between ranks, no room in a
            node's shared memory, no ml_dtypes, or no MPI_THREAD_MULTIPLE.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        size: int,
        wire_dtype: str,
        start: NDArray[Any] | None = None,
        interval: float = 1e-3,
    ) -> None:
        require_threads("half the bytes on the wire")
        self._wire = agree(comm, lambda: Wire(wire_dtype))
        check_center(comm, size, wire_dtype, start)
        self.dtype = np.dtype(np.float32)
        found = self.dtype.name if start is None else start.dtype.name
        same(comm, "the dtype of the center's start", found)
        if found != self.dtype.name:
            raise InputError(f"center: expected start of float32 for wire_dtype {wire_dtype}, found {found}")
        self.comm = comm
        self._layout = Layout(size, comm.size, CHUNK_BYTES // 2)
        self._owner = Owner(comm, self._layout, self._wire, start)
        self._residual = np.zeros(size, self.dtype)
        self._staging = np.empty(size, self._wire.dtype)
        self._owed = np.zeros(comm.size, np.int64)  # adds of this rank that are wholly in its residual, by shard
        self._turn = threading.Lock()
        self._progress = Progress(comm, interval, self._owner.fold)
        barrier(comm)  # every mirror is filled
        self._open = True

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._layout.size

    @property
    def version(self) -> int:
        """Number of adds begun so far, by all ranks."""
        return self._owner.cells.value(0, self._owner.total)

    @property
    def wire_bytes(self) -> int:
        """Bytes that one read moves, and one add at most."""
        return 2 * self.size

    @property
    def residual(self) -> NDArray[np.float32]:
        """What this rank's adds still owe to y, shape (size,); a copy."""
        with self._turn:
            return self._residual.copy()

    def versions(self) -> NDArray[np.int64]:
        """Return the number of adds that each rank's shard holds, shape (ranks,), up to what rounding left behind."""
        return self._owner.cells.values(self._owner.held)

    def read(self, out: NDArray[Any]) -> int:
        """Copy y into `out`, rounded to the nearest that the wire has, and to its largest number beyond its range.

        Args:
            out: shape (size,), float32, contiguous.

        Returns:
            A version that the copy holds at least.

        Raises:
            InputError: `out` has another shape, dtype or layout.
        """
        check_vector("read", out, self.size, self.dtype)
        with self._turn:
            self._owner.fold()
            version = int(self.versions().min())
            for rank in self._layout.order(self.comm.rank):
                low, high = self._layout.bounds(rank)
                for first, end, at in self._layout.chunks(rank):
                    place = (rank * (high - low) + at, end - first, BITS)
                    found = (self._staging[first:end].view(np.uint16), BITS)
                    self._owner.window.Get_accumulate((None, 0, BITS), found, rank, place, MPI.NO_OP)
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
            # Counted before any shard holds it, so that `read` never returns a version above `version`.
            before = self._owner.cells.add(0, self._owner.total)
            me, *others = self._layout.order(self.comm.rank)
            self._owner.fold(delta, 1)
            full = self._owner.cells.values(me)
            for rank in others:
                self._send(rank, delta, bool(full[rank]))
            self._owed[others] += 1
            empty = [rank for rank in others if not full[rank]]
            self._owner.window.Flush_all()  # the data is there before the flags
            self._owner.cells.put(me, {rank: int(self._owed[rank]) for rank in empty})
            self._owed[empty] = 0
        return before

    def set(self, vector: NDArray[Any], version: int) -> None:
        """Make y and its version what is given, and drop what is on its way; every rank calls it with the same.

        No rank may be in an add, and a barrier must follow.

        Args:
            vector: shape (size,), float32, contiguous.
            version: the number of adds that it holds.
        """
        check_vector("set", vector, self.size, self.dtype)
        low, high = self._layout.bounds(self.comm.rank)
        with self._turn:
            self._residual[:] = 0
            self._owed[:] = 0
            self._owner.set(vector[low:high], version)
            if self.comm.rank == 0:
                self._owner.cells.set(0, self._owner.total, version)

    def master(self) -> tuple[NDArray[np.float32], int, int]:
        """Return a float32 copy of this rank's shard, its first element's index and the one after its last's.

        It lacks what the ranks' residuals still hold.
        """
        if self._open:
            self._owner.fold()
        return (self._owner.shard(), *self._layout.bounds(self.comm.rank))

    def gather(self, out: NDArray[Any]) -> int:
        """Copy y into `out` in float32, with all adds that began before; collective.

        What the residuals hold is added to y first, in float32, so that afterwards they are zero.

        Args:
            out: shape (size,), float32, contiguous.

        Returns:
            The version, alike on all ranks: the copy holds these adds and no other.

        Raises:
            InputError: `out` has another shape, dtype or layout.
        """
        check_vector("gather", out, self.size, self.dtype)
        me = self.comm.rank
        low, high = self._layout.bounds(me)
        with self._turn:
            barrier(self.comm)  # no rank is in an add, and none leaves before the others have summed what is owed
            version = self.version
            for rank in range(self.comm.size):
                for first, end, _ in self._layout.chunks(rank):
                    self.comm.Reduce(self._residual[first:end], out[first:end] if rank == me else None, MPI.SUM, rank)
            owed = np.empty_like(self._owed)
            self.comm.Allreduce(self._owed, owed)
            self._residual[:] = 0
            self._owed[:] = 0
            self._owner.fold(out, int(owed[me]))
            # No rank leaves before it has this rank's shard, so no later add is in it.
            out[low:high] = self._owner.shard()
            for rank in range(self.comm.size):
                for first, end, _ in self._layout.chunks(rank):
                    self.comm.Bcast(out[first:end], rank)
        return version

    def close(self) -> None:
        """Add what the inboxes hold, end the helper thread and free the windows; collective.

        A second call does nothing. Residuals are not added: `gather` first, if y is wanted.

        Raises:
            Exception: the one that was raised in the helper thread, if any.
        """
        if not self._open:
            return
        self._open = False
        barrier(self.comm)
        self._owner.fold()
        try:
            self._progress.close()
        finally:
            self._owner.close()

    def __enter__(self) -> HalfCenter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error on this rank the others are not on their way to a collective call: leave it to the job's end.
        if kind is None:
            self.close()

    def _send(self, rank: int, delta: NDArray[Any], full: bool) -> None:
        """Put this rank's part of a shard into its inbox there, or keep it if the inbox is full."""
        low, high = self._layout.bounds(rank)
        for first, end, at in self._layout.chunks(rank):
            rest, sent = self._residual[first:end], self._staging[first:end]
            rest += delta[first:end]
            if not full:
                self._wire.encode(rest, sent)
                rest -= sent
                place = (self.comm.rank * (high - low) + at, end - first, BITS)
                self._owner.window.Put((sent.view(np.uint16), BITS), rank, place)
