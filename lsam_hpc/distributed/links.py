"""The windows and helper threads that connect a rank to the others; made anew when ranks are lost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mpi4py import MPI
from numpy.typing import NDArray

from lsam_hpc import rma
from lsam_hpc.distributed.chains import ChainRanks
from lsam_hpc.rma import faults


@dataclass(frozen=True)
class Plan:
    """What the links of a rank consist of.

    Args:
        publishes: whether chains publish states.
        shares_center: whether there is a shared center.
        wire_dtype: of the shared center.
        make_group: makes the ranks of this rank's chain, collectively. None: each rank is a chain.
    """

    publishes: bool
    shares_center: bool
    wire_dtype: str
    make_group: Callable[[MPI.Intracomm], ChainRanks] | None


class Links:
    """A rank's windows and helper threads; making and closing them is collective.

    Args:
        comm: the ranks.
        plan: what to make.
        start: the center, shape (P,).
        steps: number of steps that all chains have claimed. Default 0.

    Attributes:
        holders: the ranks that share the windows of the center.
        spread: why MPI needs a helper thread, for example because ranks span nodes; None on one node.
    """

    def __init__(self, comm: MPI.Intracomm, plan: Plan, start: NDArray[Any], steps: int = 0) -> None:
        self.comm = comm
        self.spread = rma.why_progress_needed(comm)
        # The half-precision center has its own helper thread.
        helped = not self.spread or MPI.Query_thread() < MPI.THREAD_MULTIPLE or plan.wire_dtype != "float32"
        self.progress = None if helped else rma.ProgressThread(comm)
        self.peers = rma.PeerTable(comm, start.size if plan.publishes else 0, start.dtype.name)
        self.counter = rma.Counter(comm, steps)
        self.group = None if plan.make_group is None else plan.make_group(comm)
        self.holders = comm if self.group is None or self.group.holders is None else self.group.holders
        self.windows: rma.Center | rma.HalfPrecisionCenter | None = None
        if plan.shares_center and plan.wire_dtype == "float32":
            self.windows = rma.Center(self.holders, start.size, start.dtype.name, start)
        elif plan.shares_center:
            self.windows = rma.HalfPrecisionCenter(self.holders, start.size, plan.wire_dtype, start)

    def take_over(self, before: Links, version: int) -> None:
        """Continue with what this rank had in links with other ranks; a barrier must follow.

        Args:
            before: of this rank, before ranks were lost; they are not used any more, and never freed.
            version: of the shared center.
        """
        self.peers.take_over(before.peers)
        if before.progress is not None:
            before.progress.abandon()
        if before.windows is not None and self.windows is not None:
            before.windows.abandon()
            self.windows.set_version(version)

    def close(self) -> None:
        """Free everything; collective."""
        for part in (self.progress, self.windows, self.group, self.counter, self.peers):
            if part is not None:
                part.close()


def steps_known(links: Links, known: int, *, lowest: bool) -> int:
    """Return the number of claimed steps that this rank can contribute to a maximum over the ranks that are left.

    Args:
        links: before ranks were lost.
        known: what this rank knows.
        lowest: this is the lowest rank that is left.
    """
    return max(known, links.counter.glance()) if _sees_rank_0(links, links.comm, lowest=lowest) else known


def salvaged_center(
    links: Links, comm: MPI.Intracomm, read: NDArray[Any], version: int
) -> tuple[NDArray[Any], int, int]:
    """Return the center of the ranks that are left, its version, and how many adds a part of it may lack; collective.

    Shards of the ranks that are left are exact. So are those of lost ranks if all ranks are on one node, as the memory
    is still there. Else a lost shard is what a rank read last, of all ranks' reads the newest.

    Args:
        links: before ranks were lost.
        comm: those of `links.holders` that are left.
        read: the center as this rank read it last, shape (P,).
        version: of that read.
    """
    windows = links.windows
    if windows is None:
        return read.copy(), version, 0
    lowest = comm.rank == 0
    seen = windows.glance_version() if _sees_rank_0(links, links.holders, lowest=lowest) else version
    versions = comm.allgather((version, seen))
    latest = max(seen for _, seen in versions)
    newest = max(range(comm.size), key=lambda rank: versions[rank][0])
    y = read.copy()
    y[:] = 0
    windows.salvage(links.holders.rank, y)
    left = faults.numbers_in_world(comm)
    for rank, number in enumerate(faults.numbers_in_world(links.holders)):
        if number in left:
            continue
        low, high = windows.bounds(rank)
        if not links.spread and lowest:
            windows.salvage(rank, y)
        elif links.spread and comm.rank == newest:
            y[low:high] += read[low:high]
    rma.wait_without_spinning(comm.Iallreduce(MPI.IN_PLACE, y), y)  # each rank contributes a part
    return y, latest, latest - versions[newest][0] if links.spread else 0


def _sees_rank_0(links: Links, comm: MPI.Intracomm, *, lowest: bool) -> bool:
    return comm.rank == 0 or (lowest and not links.spread)
