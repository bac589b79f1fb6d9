"""Chains of several ranks, which take each step together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
from mpi4py import MPI

from lsam_hpc import rma
from lsam_hpc.errors import InputError
from lsam_hpc.optim.center import Center

_KEPT = 8  # draws; a broadcast may end for the leader before it does for others, so that it is some draws ahead


class ChainRanks(ABC):
    """The ranks of one chain, of which the first leads; collective.

    Args:
        comm: all ranks.
        ranks: the ranks of this rank's chain, in the order of their numbers in it. The chains partition `comm`.
        name: of what the caller gave the ranks by, for the message.

    Attributes:
        ranks: the ranks of this rank's chain in `comm`.
        comm: the ranks of the chain, for the training thread.
        link: the same ranks, for the exchange thread.
        partition: the ranks of all chains.
        index: number of the chain.
        chains: number of chains.

    Raises:
        InputError: the chains do not partition the ranks; on all ranks alike.
    """

    can_shrink = False  # True if the chain can continue without a rank that is lost

    def __init__(self, comm: MPI.Intracomm, ranks: Sequence[int], name: str) -> None:
        chains = comm.allgather(list(ranks))
        for rank, chain in enumerate(chains):
            if rank not in chain or any(other >= comm.size or chains[other] != chain for other in chain):
                raise InputError(f"{name}: expected a partition, found {chain} on rank {rank}", everywhere=True)
        self.ranks = list(ranks)
        self.comm = comm.Split(min(ranks), self.ranks.index(comm.rank))
        self.link = self.comm.Dup()
        self.partition = sorted({min(chain): chain for chain in chains}.values(), key=min)
        self.index, self.chains = self.partition.index(self.ranks), len(self.partition)
        self._draws = 0  # calls of `draw` that have returned
        self._drawn: dict[int, int] = {}  # the results of the last calls, by number

    @property
    def leads(self) -> bool:
        """Whether this rank claims the chain's steps."""
        return self.comm.rank == 0

    @property
    def holders(self) -> MPI.Intracomm | None:
        """The ranks that exchange the same elements as this one; None: all ranks."""
        return None

    def holders_in(self, comm: MPI.Intracomm) -> MPI.Intracomm:
        """Return those of the ranks that are left which hold the same elements as this one; collective.

        Args:
            comm: the ranks that are left.
        """
        return comm

    @abstractmethod
    def again(self, comm: MPI.Intracomm, ranks: Sequence[int]) -> ChainRanks:
        """Return the same chain among the ranks that are left; collective.

        Args:
            comm: the ranks that are left.
            ranks: those of this chain, as numbered in it.
        """

    def center(self, center: Center) -> Center:
        """Return the center as a rank of the chain sees it, given the center in the windows."""
        return center

    def draw(self, number: Callable[[], int]) -> int:
        """Call `number` on the leader only and return its result on all ranks of the chain; collective."""
        if self._draws not in self._drawn:
            value = np.array([number() if self.leads else 0], np.int64)
            rma.wait_without_spinning(self.comm.Ibcast(value), value)
            self._drawn[self._draws] = int(value[0])
            self._drawn.pop(self._draws - _KEPT, None)
        self._draws += 1
        return self._drawn[self._draws - 1]

    def take_over(self, before: ChainRanks) -> None:
        """Continue the draws of a chain that lost ranks: what one member has drawn, the others draw too; collective."""
        self._draws = before._draws
        for drawn in self.comm.allgather(before._drawn):
            self._drawn |= drawn

    def close(self) -> None:
        """Free the communicators; collective."""
        self.link.Free()
        self.comm.Free()
