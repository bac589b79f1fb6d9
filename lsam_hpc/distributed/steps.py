"""Counters of the steps of all ranks: a shared one, equal shares, equal shares in lockstep, and common steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from mpi4py import MPI

from lsam_hpc import rma
from lsam_hpc.distributed.chains import ChainRanks
from lsam_hpc.distributed.communication import Communication

STOP = 1 << 40  # added to the shared counter by `LSAM.stop`: larger than any budget


class GuardedCounter:
    """The shared step counter of the ranks that are left.

    Args:
        communication: holds it.

    Raises:
        RankLostError: in each method: a rank has failed, and the call failed or does not return.
    """

    def __init__(self, communication: Communication) -> None:
        self._communication = communication

    def add(self, amount: int = 1) -> int:
        """Add atomically and return the previous value."""
        return self._communication.call(lambda: self._communication.links.counter.add(amount))

    @property
    def value(self) -> int:
        """The current value."""
        return self._communication.call(lambda: self._communication.links.counter.value)


class SharedSteps:
    """A shared step counter: each rank takes its next global step from it, so that fast ranks take more steps.

    Args:
        counter: the shared counter.
        taken: called after each step with this chain's local step and the global step.
        group: ranks that take each step together. Default: no group.
    """

    def __init__(
        self, counter: GuardedCounter, taken: Callable[[int, int], None], group: ChainRanks | None = None
    ) -> None:
        self.counter, self.taken, self.group = counter, taken, group

    def claim(self, local_step: int, since_exchange: int) -> int | None:
        """Return the next number; None if a rank has called `stop`."""
        step = self.alike(self.counter.add)
        if step < STOP:
            return step
        if self.leads:
            self.counter.add(-1)  # this step is not taken
        return None

    @property
    def leads(self) -> bool:
        """True on the rank that claims the steps of its group, and without groups."""
        return self.group is None or self.group.leads

    def limit(self, total: int) -> int:
        """Return the budget."""
        return total

    def alike(self, number: Callable[[], int]) -> int:
        """Return the number that the group's leader computes; collective in the group."""
        return number() if self.group is None else self.group.draw(number)


class EqualShares(SharedSteps):
    """Every chain takes the same number of steps; the shared counter only carries the request to stop.

    Args:
        counter: the shared counter.
        taken: as of `SharedSteps`.
        comm: all ranks.
        group: ranks that take each step together. Default: no group.
    """

    def __init__(
        self,
        counter: GuardedCounter,
        taken: Callable[[int, int], None],
        comm: MPI.Intracomm,
        group: ChainRanks | None = None,
    ) -> None:
        super().__init__(counter, taken, group)
        self.comm = comm
        self._index, self._chains = (comm.rank, comm.size) if group is None else (group.index, group.chains)

    def claim(self, local_step: int, since_exchange: int) -> int | None:
        """Return the global step as if all chains took their steps in turn."""
        if self._stops(since_exchange):
            return None
        return local_step * self._chains + self._index

    def limit(self, total: int) -> int:
        """Return the budget, rounded up to equal shares: in lockstep all ranks must exchange equally often."""
        return -(-total // self._chains) * self._chains

    def _stops(self, since_exchange: int) -> bool:
        return self.alike(lambda: self.counter.value) >= STOP


class LockstepShares(EqualShares):
    """Equal shares in lockstep: ranks check for a stop right after an exchange, so that all stop at the same step."""

    def _stops(self, since_exchange: int) -> bool:
        if since_exchange:
            return False
        latest = np.array([self.counter.value], np.int64)
        rma.wait_without_spinning(self.comm.Iallreduce(MPI.IN_PLACE, latest, MPI.MAX), latest)
        return int(latest[0]) >= STOP


class CommonSteps(SharedSteps):
    """All ranks take each step together, and it counts as one step of each chain.

    Args:
        counter: the shared counter.
        taken: as of `SharedSteps`.
        group: all ranks.
        chains: number of chains in the later steps.
        later: counts these steps.
    """

    def __init__(
        self,
        counter: GuardedCounter,
        taken: Callable[[int, int], None],
        group: ChainRanks,
        chains: int,
        later: SharedSteps,
    ) -> None:
        super().__init__(counter, lambda local, last: taken(local, last + chains - 1), group)
        self._chains, self._later = chains, later
        # Equal shares use the shared counter for the request to stop only.
        self._claims = 0 if isinstance(later, EqualShares) else chains

    def claim(self, local_step: int, since_exchange: int) -> int | None:
        """Return the first global step of those that this step counts as, the same on all ranks."""
        step = self.alike(lambda: self.counter.add(self._claims))
        if step < STOP:
            return step if self._claims else local_step * self._chains
        if self.leads:
            self.counter.add(-self._claims)
        return None

    def limit(self, total: int) -> int:
        """Return the global step at which the later counter ends a budget of `total` steps."""
        return self._later.limit(total)
