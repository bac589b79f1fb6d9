"""The synchronous start: all ranks take their first steps as one data-parallel chain, whose sample is the center."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from mpi4py import MPI
from torch import Tensor

from lsam_hpc import rma
from lsam_hpc.distributed.communication import Communication
from lsam_hpc.distributed.exchange import RmaCenter, array
from lsam_hpc.distributed.groups import Group
from lsam_hpc.distributed.recovery import RecoveringLSAM
from lsam_hpc.distributed.steps import CommonSteps, SharedSteps
from lsam_hpc.errors import RankLostError
from lsam_hpc.optim.delta_filter import DeltaFilter
from lsam_hpc.optim.parts import copied_to_host, mesh_of, placed
from lsam_hpc.optim.state import split

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# Attributes of the coupler that differ in the start.
_COUPLING = ("center", "delta_filter", "coupling", "center_momentum", "anchor", "fixed_delay")


class FollowingCenter(RmaCenter):
    """The center in the synchronous start: each rank computes it, and the leader writes it.

    Args:
        communication: as of `RmaCenter`.
        lockstep: as of `RmaCenter`.
        publishes: as of `RmaCenter`.
        leads: this rank writes the center.
        version: number of adds so far.
    """

    def __init__(
        self, communication: Communication, *, lockstep: bool, publishes: bool, leads: bool, version: int
    ) -> None:
        super().__init__(communication, lockstep=lockstep, publishes=publishes)
        self._leads, self._known = leads, version
        self._delta: Tensor | None = None  # of the last add, until it is read

    @property
    def nbytes(self) -> int:
        """Half of the bytes that an add moves, on the leader: an exchange adds, and reads nothing."""
        return super().nbytes // 2 if self._leads else 0

    def read(self, out: Tensor) -> int:
        """Bring `out`, shape (P,), which contains y before the last add, up to date, and return the version."""
        if self._delta is not None:
            out.add_(self._delta)
            self._delta = None
        return self._known

    def add(self, delta: Tensor) -> int:
        """Add `delta`, shape (P,), to y on the leader, and return the number of adds before this one."""
        if self._leads:
            super().add(delta)
        self._delta = delta
        self._known += 1
        return self._known - 1


@dataclass
class SynchronousStart:
    """What a rank needs in the synchronous start, and after it.

    Args:
        everyone: all ranks, which take each step together.
        average: averages gradients over the chains: `everyone`, or the ranks that hold the same shard.
        steps: local steps of the whole start.
        chains: number of chains after the start.
        counter: counts the steps of the start.
        later: counts the steps after it.
        coupling: attributes of the coupler after it.
        seeds: of the noise in the start, the same on all ranks with the same elements, and of this rank's after it.
    """

    everyone: Group
    average: Group
    steps: int
    chains: int
    counter: CommonSteps
    later: SharedSteps
    coupling: dict[str, Any]
    seeds: tuple[int, int]
    active: bool = False  # True in the start
    end: int = 0  # local step at which it ends

    def close(self) -> None:
        """Free the communicators; collective."""
        if self.average is not self.everyone:
            self.average.close()
        self.everyone.close()

    def agreed(
        self, comm: MPI.Intracomm, holders: MPI.Intracomm, mesh: DeviceMesh | None, state_dict: dict[str, Any]
    ) -> tuple[dict[str, Any], int]:
        """Return the state to load on this rank and how many local steps of the start are left; collective.

        A rank that was not in the job, or in another step, takes the first chain's state: in the start all are alike.

        Args:
            comm: all ranks.
            holders: the ranks that exchange the same elements, in the order of their chains.
            mesh: of this rank's chain; None: it has whole parameters.
            state_dict: of this rank.
        """
        sam = split(state_dict)[1]
        assert sam is not None
        mine, (first, total) = sam["local_step"], comm.bcast((sam["local_step"], sam["total_step"]))
        left = max(0, self.steps - math.ceil(total / self.chains))
        if left and comm.allreduce(mine != first, MPI.LOR):
            first_state = rma.broadcast(holders, copied_to_host(state_dict) if holders.rank == 0 else {})
            return (state_dict if mine == first else placed(first_state, mesh)), left
        return state_dict, left


class StartingLSAM(RecoveringLSAM):
    """The part of `LSAM` that starts synchronously.

    In the start all ranks average their descent gradients, and no exchange moves a sample: the center follows it. The
    chains part from a common sample.

    Source: post-local SGD: Lin et al. 2018 (arXiv 1808.07217); SWAP: Gupta et al. 2020 (arXiv 2001.02312).
    """

    comm: MPI.Intracomm
    _start: SynchronousStart | None = None

    def _prepare_start(
        self, steps: int, groups: tuple[Group, Group], later: SharedSteps, chains: int, seeds: tuple[int, int]
    ) -> None:
        """Begin with a synchronous start.

        Args:
            steps: its local steps.
            groups: all ranks, and those that average their gradients.
            later: counts the steps after it.
            chains: number of chains after it.
            seeds: of the noise in the start, the same on all ranks with the same elements, and of this rank's after it.
        """
        self._noise.generator.manual_seed(seeds[0])
        counter = CommonSteps(later.counter, later.taken, groups[0], chains, later)
        coupling = {name: getattr(self._coupler, name) for name in _COUPLING}
        self._start = SynchronousStart(*groups, steps, chains, counter, later, coupling, seeds)
        self._enter_start(self._start, self._coupler.last_read()[1])
        self._start.end = steps

    @property
    def starting(self) -> bool:
        """True in the synchronous start."""
        return self._start is not None and self._start.active

    def _begin_exchange(self, in_flight: int, pull: float) -> None:
        super()._begin_exchange(in_flight, 1.0 if self.starting else pull)

    def _finish(self) -> None:
        super()._finish()
        start = self._start
        if start is None or not start.active:
            return
        self.global_step += start.chains - 1
        if self.local_step >= start.end:
            self._part(start)

    def _recover(self) -> None:
        if self.starting:
            raise RankLostError("a rank was lost: the synchronous start cannot go on without it; resume the job")
        super()._recover()

    def _enter_start(self, start: SynchronousStart, version: int) -> None:
        """Average over all ranks, and let the center follow the sample.

        Args:
            start: the start.
            version: number of adds to the center so far.
        """
        center = FollowingCenter(
            self.communication,
            lockstep=self.lockstep,
            publishes=self.communication.center.publishes,
            leads=self.communication.links.holders.rank == 0,
            version=version,
        )
        # The center becomes the sample by the coupling kernel with a pull of 1, without its force. All ranks apply the
        # result of an exchange, which moves them if it was rejected, at the same step.
        following = (center, DeltaFilter(math.inf), "kernel", 0.0, None, True)
        for name, value in zip(_COUPLING, following, strict=True):
            setattr(self._coupler, name, value)
        self._average_over(start.average, start.counter)
        start.active = True

    def _leave_start(self, start: SynchronousStart) -> None:
        """Continue as a chain of its own, or of its group."""
        for name, value in start.coupling.items():
            setattr(self._coupler, name, value)
        group = self.communication.links.group
        self._average_over(group if isinstance(group, Group) else None, start.later)
        start.average.forget()
        start.active = False

    def _average_over(self, group: Group | None, counter: SharedSteps) -> None:
        self.average, self._counter = group, counter
        self._arguments = replace(self._arguments, average=group)  # some ascents exclude it

    def _part(self, start: SynchronousStart) -> None:
        """End the synchronous start: a sample, with averaged statistics, becomes all samples and the center."""
        if self._since_exchange:
            self._begin_exchange(0, 1.0)
        self.drain()
        state, version = self._coupler.state_dict(), self._coupler.last_read()[1]
        sample, holders = state["sample"].cpu(), self.communication.links.holders
        statistics = sample[sum(p.numel() for p in self._coupler.params) :]
        if statistics.numel():
            rma.wait_without_spinning(holders.Iallreduce(MPI.IN_PLACE, array(statistics)), statistics)
            statistics.div_(holders.size)
        # The samples are equal where averaging gives all ranks the same bits: make sure of it.
        rma.wait_without_spinning(holders.Ibcast(array(sample)), sample)
        windows = self.communication.links.windows
        assert windows is not None
        windows.set(sample.numpy(), version)
        rma.barrier(self.comm)
        self._leave_start(start)
        velocity = state["velocity"]
        self._coupler.load_state_dict(
            {
                "sample": sample,
                "anchor": sample,
                "anchor_version": version,
                "velocity": None if velocity is None else torch.zeros_like(velocity),
                "guard": [],
            }
        )
        common, own = start.seeds
        if own != common:  # else the noise of the start goes on
            self._noise.generator.manual_seed(own)

    def _begin_load(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Enter or leave the start before a state is loaded; collective. Return the state to load on this rank."""
        start = self._start
        if start is None:
            return state_dict
        self.drain()
        state_dict, left = start.agreed(
            self.comm, self.communication.links.holders, mesh_of(self.parameters), state_dict
        )
        local_step = split(state_dict)[1]["local_step"]  # type: ignore[index]
        start.end = local_step + left
        if left:
            self._enter_start(start, state_dict["lsam"]["anchor_version"])
        else:
            self._leave_start(start)
        # Of chains whose state has no generator: those in the start draw the same numbers, others do not.
        self._noise.generator.manual_seed(start.seeds[0 if left else 1])
        return state_dict

    def _end_load(self) -> None:
        """Give a chain that joins the job after the start noise of its own."""
        if self._start is not None and not self._start.active and self.local_step == 0:
            self._noise.generator.manual_seed(self._start.seeds[1])
