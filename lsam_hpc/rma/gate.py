"""Lets changes pass side by side, and holds all of them back while a rank takes a snapshot.

MPI's own exclusive lock would do, but MPICH grants it only when the target enters MPI. This one is made of atomic
operations, which need no help from a busy rank on its node.

Each rank has two numbers in its memory: ADDING, its changes under way, and HELD, the snapshot that holds it back. The
changer writes ADDING, then reads HELD; the snapshot writes HELD, then reads ADDING; each waits until its write is done
before it reads. So at least one of the two sees the other (Dekker 1962), and the changer is the one that steps back.
A change costs three atomic operations on its own rank's memory, a snapshot four on each rank's.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from mpi4py import MPI

from lsam_hpc.rma.counter import Cells

ADDING, HELD = 0, 1  # the first is only added to, the second only swapped
WAITING = 1 << 32  # in ADDING: a changer that stepped back and wants to go on
COURTESY = 1.0  # seconds for which a snapshot lets waiting changers go first, so that snapshots in a row starve none


class Gate:
    """Keeps changes out of snapshots, for all ranks of a communicator; making and closing it is collective.

    A snapshot takes every rank's HELD, in rank order and gives them back the other way round, so snapshots wait for
    each other at rank 0 and cannot deadlock. A rank that dies in a change or a snapshot makes the others wait for a
    while and no longer; across hosts MPI itself waits for a dead rank for ever. Several threads of a rank may use it.

    Args:
        comm: the ranks.
        patience: seconds that a snapshot waits for changes to end; changes and other snapshots wait twice as long for
            a snapshot. Above 0.
    """

    def __init__(self, comm: MPI.Intracomm, patience: float) -> None:
        self._comm = comm
        self._patience = patience
        self._cells = Cells(comm, 2)
        # Unlike for every snapshot, so that nobody takes two of a rank's for one that lasts too long.
        self._tokens = itertools.count(1 + comm.rank, comm.size)
        self._warned = False

    @contextmanager
    def change(self) -> Iterator[None]:
        """Run the body, which changes what is guarded, while no snapshot is taken.

        A snapshot that takes longer than twice the patience is no longer waited for, with one warning.
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
    def snapshot(self) -> Iterator[None]:
        """Run the body, which reads what is guarded, while no rank changes it.

        Raises:
            TimeoutError: a rank's change did not end in time; or the body took so long that a rank went on without
                waiting for it, so that what it has read may hold half a change.
        """
        token = next(self._tokens)
        held: list[int] = []
        broken: list[int] = []
        try:
            self._let_changes_go_first()
            for rank in range(self._comm.size):
                while other := self._cells.swap(rank, HELD, 0, token):
                    self._await_release(rank, other)
                    self._let_changes_go_first()
                held.append(rank)
            self._await_changes()
            yield
        finally:
            broken = [rank for rank in reversed(held) if self._cells.swap(rank, HELD, token, 0) != token]
        if broken:
            raise TimeoutError(
                f"snapshot: expected to be done within {2 * self._patience:g} s, twice the patience; "
                "another rank did not wait any longer"
            )

    def close(self) -> None:
        """Free the window; collective; a second call does nothing."""
        self._cells.close()

    def _let_changes_go_first(self) -> None:
        for waited in _looks():
            if (self._cells.values(ADDING) < WAITING).all() or waited > COURTESY:
                return

    def _await_changes(self) -> None:
        for waited in _looks():
            busy = np.flatnonzero(self._cells.values(ADDING) % WAITING)
            if busy.size == 0:
                return
            if waited > self._patience:
                raise TimeoutError(
                    f"snapshot: rank {busy[0]} has been in an add for {self._patience:g} s; if it died there, a part "
                    "of its delta may be in the center, and only plain reads are possible"
                )

    def _await_release(self, rank: int, token: int) -> None:
        """Wait until a rank is no longer held by a snapshot, or end the hold if that takes too long."""
        for waited in _looks():
            if self._cells.value(rank, HELD) != token:
                return
            if waited > 2 * self._patience:
                self._break(token)

    def _break(self, token: int) -> None:
        """End a snapshot's hold on all ranks: if it is alive, it will find out when it gives them back."""
        ranks = reversed(range(self._comm.size))
        found = [self._cells.swap(rank, HELD, token, 0) for rank in ranks]
        if token in found and not self._warned:
            self._warned = True
            warnings.warn(
                f"rank {(token - 1) % self._comm.size} has held up adds for a snapshot for {2 * self._patience:g} s; "
                "they go on without waiting for it",
                stacklevel=2,
            )


def _looks() -> Iterator[float]:
    """Yield the seconds waited so far for each look at what is waited for, at growing distances.

    The time between two looks counts for a second at most: a job that was suspended as a whole must not give up on
    anyone when it goes on.
    """
    waited, last, pause = 0.0, time.monotonic(), 1e-5
    while True:
        yield waited
        time.sleep(pause)
        pause = min(2 * pause, 1e-3)
        now = time.monotonic()
        waited, last = waited + min(now - last, 1.0), now
