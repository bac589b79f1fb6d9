"""A chain that continues when ranks are lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from mpi4py import MPI
from torch.amp import GradScaler

from lsam_hpc import rma
from lsam_hpc.distributed.communication import Communication
from lsam_hpc.distributed.groups import Group
from lsam_hpc.distributed.sharded import ShardedChain
from lsam_hpc.distributed.steps import STOP, EqualShares, SharedSteps
from lsam_hpc.errors import RankLostError
from lsam_hpc.optim.chain_state import COUNTS
from lsam_hpc.optim.lsam import LocalLSAM
from lsam_hpc.optim.smoothed import SmoothedLoss
from lsam_hpc.rma import faults

T = TypeVar("T")


class RecoveringLSAM(LocalLSAM):
    """The part of `LSAM` that continues without ranks that are lost.

    The ranks that are left recover between steps. Exchanges that do not end are dropped.
    """

    communication: Communication
    lockstep: bool
    _loss: SmoothedLoss
    _stop_wanted: bool  # this rank has called `stop`

    @property
    def on_recovery(self) -> list[Callable[[MPI.Intracomm], object]]:
        """Functions that all ranks call after ranks were lost, with the communicator of those that are left."""
        return self.communication.on_recovery

    def survive(self, function: Callable[[], T]) -> T:
        """Call a function that needs other ranks, between steps; if a rank is lost, recover, then call it again.

        Without ULFM (`mpirun --with-ft ulfm`) it only calls it. `step` and `steps` survive without it.

        Args:
            function: for example a collective call on the communicator that `on_recovery` received last.

        Returns:
            What the function returned.

        Raises:
            RankLostError: a rank was lost in lockstep, or in a group whose averages MPI does not compute.
        """
        return self.communication.survive(function)

    def step(
        self, closure: Callable[..., Any] | None = None, scaler: GradScaler | None = None, *, batch: object = None
    ) -> Any:  # noqa: ANN401
        """Take one step, as `SAM.step`. If a rank of the group is lost in it, the others take it again without it."""
        while True:
            try:
                return super().step(closure, scaler, batch=batch)
            except RankLostError:
                before = self.local_step
                self._recover()
                if self.local_step > before:  # another member had taken this step
                    return torch.tensor(self._loss.value)

    def _claim(self) -> int | None:
        return self.global_step if self._claimed else self.survive(super()._claim)

    def _collect(self, in_flight: int | None = None) -> None:
        try:
            super()._collect(in_flight)
        except (RankLostError, MPI.Exception) as error:
            if not faults.watch().explains(error):
                raise  # else the exchange is dropped, and the ranks recover before the next step

    def _recover(self) -> None:
        """Continue without the ranks that are lost; collective on those that are left."""
        group = self.communication.links.group
        if self.lockstep:
            raise RankLostError("a rank was lost: a run in lockstep cannot be repeated without it; resume it")
        if isinstance(group, ShardedChain):
            if group.lost:
                raise RankLostError("a rank of this chain was lost, and with it a part of the model; resume the job")
        elif group is not None and not group.can_shrink:
            raise RankLostError(
                "a rank was lost: chains whose gradients MPI does not average cannot continue; resume the job"
            )
        while self._coupler.busy:
            self._collect(0)
        claimed = 0 if isinstance(self._counter, EqualShares) else self.global_step + self._claimed
        stop = STOP if self._stop_wanted or self.stopped else 0
        self.communication.recover(*self._coupler.last_read(), claimed + stop)
        self._coupler.renew(self.communication.executor)
        if isinstance(group, Group):
            self._join_group(group)
        elif isinstance(group, ShardedChain):
            self._join_chain(group)

    def _join_group(self, before: Group) -> None:
        """Take over the state of the member that is furthest: the loss may have interrupted a step of the others."""
        group = self.communication.links.group
        assert isinstance(group, Group)
        assert isinstance(self._counter, SharedSteps)
        self.average = self._counter.group = group
        group.take_over(before)
        steps, rank = group.comm.allgather(self.local_step), group.comm.rank
        furthest = steps.index(max(steps))
        state = rma.broadcast(group.comm, super()._state() if rank == furthest else {}, furthest)
        if rank != furthest:
            global_step, claimed = self.global_step, self._claimed and steps[rank] == steps[furthest]
            super()._load(state)
            self.global_step, self._claimed = global_step, claimed  # it draws its next step as the others did

    def _join_chain(self, before: ShardedChain) -> None:
        """Go on with the other ranks of a sharded chain; at the center, if the loss has left their parts apart."""
        group = self.communication.links.group
        assert isinstance(group, ShardedChain)
        assert isinstance(self._counter, SharedSteps)
        self._counter.group = group
        group.take_over(before)
        state = super()._state()
        # The norms are the chain's, as the counts are; equal on all its ranks unless one of them dropped an exchange.
        shared = {key: state["lsam"][key] for key in ["guard", *COUNTS] if key not in ("_claimed", "blocked")}
        if len(set(map(str, group.comm.allgather({**shared, "guard": shared["guard"].tolist()})))) == 1:
            return
        y = torch.empty(self.communication.center.size, dtype=self._coupler.dtype)
        self.communication.center.peek(y)
        pieces, version = self.chain_state.pieces(y), self.communication.center.version
        state["lsam"] |= group.comm.bcast(shared)
        state["lsam"] |= {"sample": pieces, "anchor": pieces, "anchor_version": version}
        super()._load(state)
