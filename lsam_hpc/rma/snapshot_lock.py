"""A readers-writer lock over all ranks: changes share it, a snapshot holds it exclusively.

MPI's own exclusive lock would suffice, but MPICH grants it only when the target enters MPI. This lock uses atomic
operations, which need no help from a busy rank on the same node.

Each rank has two cells in its memory: ADDING, the number of its running changes, and HELD, the token of the snapshot
that blocks it, or 0. A change writes ADDING, then reads HELD; a snapshot writes HELD, then reads ADDING; each waits
until its write is complete before it reads. So at least one of the two sees the other (Dekker 1962), and then the
change waits. A change costs three atomic operations on its own rank's memory, a snapshot four on each rank's.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from mpi4py import MPI

from lsam_hpc.rma.counter import AtomicArray

ADDING, HELD = 0, 1  # ADDING is changed only by additions, HELD only by compare-and-swap
WAITING = 1 << 32  # in ADDING: one change that waits for a snapshot to end
COURTESY = 1.0  # seconds that a snapshot lets waiting changes go first, so that repeated snapshots do not starve them


class SnapshotLock:
    """Keeps changes out of snapshots, for all ranks of a communicator; creating and closing it is collective.

    A snapshot acquires every rank's HELD in rank order and releases them in reverse order, so snapshots wait for each
    other at rank 0 and cannot deadlock. If a rank dies in a change or a snapshot, the others wait for a limited time;
    between hosts, however, MPI itself waits for a dead rank for ever. Several threads of a rank may use the lock.

    Args:
        comm: the ranks.
        patience: seconds that a snapshot waits for changes to finish, above 0. Changes and other snapshots wait twice
            as long for a snapshot.
    """

    def __init__(self, comm: MPI.Intracomm, patience: float) -> None:
        self._comm = comm
        self._patience = patience
        self._cells = AtomicArray(comm, 2)
        # Unique per snapshot, so that two snapshots by one rank are not mistaken for one that never ends.
        self._tokens = itertools.count(1 + comm.rank, comm.size)
        self._warned = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Run the body, a change of the protected data, while no snapshot is taken.

        It does not wait longer than twice the patience for a snapshot, and then warns once.
        """
        me = self._comm.rank
        self._cells.add(me, ADDING)
        try:
            while token := self._cells.value(me, HELD):
                self._cells.add(me, ADDING, WAITING - 1)
                try:
                    self._await_release(me, token)
                finally:
                    self._cells.add(me, ADDING, 1 - WAITING)
            yield
        finally:
            self._cells.add(me, ADDING, -1)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Run the body, a snapshot of the protected data, while no rank changes it.

        Raises:
            TimeoutError: a rank's change did not finish in time, or the body took so long that another rank continued
                without waiting for it, so that the snapshot may contain a part of a change.
        """
        token = next(self._tokens)
        held: list[int] = []
        broken: list[int] = []
        try:
            self._let_changes_go_first()
            for rank in range(self._comm.size):
                while other := self._cells.compare_and_swap(rank, HELD, 0, token):
                    self._await_release(rank, other)
                    self._let_changes_go_first()
                held.append(rank)
            self._await_changes()
            yield
        finally:
            broken = [rank for rank in reversed(held) if self._cells.compare_and_swap(rank, HELD, token, 0) != token]
        if broken:
            raise TimeoutError(
                f"snapshot: expected an end within {2 * self._patience:g} s (twice the patience); "
                "another rank stopped waiting and continued"
            )

    def close(self) -> None:
        """Free the window; collective; a second call does nothing."""
        self._cells.close()

    def _let_changes_go_first(self) -> None:
        for waited in _poll():
            if (self._cells.values(ADDING) < WAITING).all() or waited > COURTESY:
                return

    def _await_changes(self) -> None:
        for waited in _poll():
            busy = np.flatnonzero(self._cells.values(ADDING) % WAITING)
            if busy.size == 0:
                return
            if waited > self._patience:
                raise TimeoutError(
                    f"snapshot: rank {busy[0]} has been in an add for {self._patience:g} s; if it died there, the "
                    "center may contain a part of its delta, and only plain reads are possible"
                )

    def _await_release(self, rank: int, token: int) -> None:
        """Wait until a snapshot releases a rank, or break its hold on all ranks if that takes too long."""
        for waited in _poll():
            if self._cells.value(rank, HELD) != token:
                return
            if waited > 2 * self._patience:
                self._break(token)

    def _break(self, token: int) -> None:
        """Break a snapshot's hold on all ranks; if its rank is alive, it notices when it releases them."""
        ranks = reversed(range(self._comm.size))
        holders = [self._cells.compare_and_swap(rank, HELD, token, 0) for rank in ranks]
        if token in holders and not self._warned:
            self._warned = True
            warnings.warn(
                f"rank {(token - 1) % self._comm.size} has blocked adds for a snapshot for {2 * self._patience:g} s; "
                "adds continue without waiting for it",
                stacklevel=2,
            )


def _poll() -> Iterator[float]:
    """Yield the seconds waited so far, once per poll, with growing pauses between polls.

    A pause counts for 1 s at most, so that no rank is given up when a job resumes that was suspended as a whole.
    """
    waited, last, pause = 0.0, time.monotonic(), 1e-5
    while True:
        yield waited
        time.sleep(pause)
        pause = min(2 * pause, 1e-3)
        now = time.monotonic()
        waited, last = waited + min(now - last, 1.0), now
