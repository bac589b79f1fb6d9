"""A rank's connections to the other ranks, and how they are made anew when ranks are lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from mpi4py import MPI
from numpy.typing import NDArray

from lsam_hpc.distributed.chains import ChainRanks
from lsam_hpc.distributed.exchange import GuardedExecutor, RmaCenter, ThreadExecutor
from lsam_hpc.distributed.groups import Group, GroupCenter
from lsam_hpc.distributed.heartbeats import Heartbeats
from lsam_hpc.distributed.links import Links, Plan, salvaged_center, steps_known
from lsam_hpc.distributed.sharded import ShardedChain
from lsam_hpc.distributed.topology import GossipCenter, LeaderCenter
from lsam_hpc.errors import RankLostError
from lsam_hpc.optim.center import Center
from lsam_hpc.optim.executor import Executor, InlineExecutor
from lsam_hpc.options.communication import CommunicationOptions
from lsam_hpc.rma import faults
from lsam_hpc.util.log import get_logger

_LOG = get_logger(__name__)
T = TypeVar("T")
STALLED = 5.0  # s after which an exchange may be given up because a rank sends no heartbeats
GRACE = 2.0  # s after the loss of a rank in which calls may still return


class Communication:
    """A rank's windows and threads; making and closing them is collective.

    Ranks keep their numbers when others are lost: `comm` and the numbers in this interface are those of the start.
    `links.comm` is the communicator of the ranks that are left, `members` are their numbers.

    Args:
        comm: communicator of all ranks.
        start: the center's start, shape (P,), the same on every rank.
        options: checked by `check_communication`.
        seed: seed of the random graph.
        max_delta_ratio: of the filter on states read by gossip.
        group_reduce: as of `LSAM`.
        group_ranks: as of `LSAM`.
        group_average: as of `LSAM`.
        shard_ranks: the ranks of this rank's chain, each of which holds a part of `start`. Default: a rank holds all.

    Attributes:
        on_loss: called by the training thread when ranks are lost; it calls `recover`.
        on_recovery: called in `recover` with the new communicator, to make anew what else the ranks share.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        start: NDArray[Any],
        options: CommunicationOptions,
        *,
        seed: int,
        max_delta_ratio: float,
        group_reduce: Callable[[torch.Tensor], None] | None = None,
        group_ranks: Sequence[int] | None = None,
        group_average: Callable[[list[torch.Tensor]], None] | None = None,
        shard_ranks: Sequence[int] | None = None,
    ) -> None:
        lockstep = options.mode == "lockstep"
        self.comm = comm
        self.on_loss: Callable[[], object] = self._give_up
        self.on_recovery: list[Callable[[MPI.Intracomm], object]] = []
        self.failed_ranks: list[int] = []
        self.members = list(range(comm.size))
        self._in_world = frozenset(faults.numbers_in_world(comm))
        self._patience = options.heartbeat_timeout
        self._recovering = False
        topology, publish = options.topology, options.publish
        if topology != "center" and publish == "none":
            publish = "sample"
        self.perturbed = publish == "perturbed"
        self._multiple = MPI.Query_thread() == MPI.THREAD_MULTIPLE
        make_group: Callable[[MPI.Intracomm], ChainRanks] | None = None
        if shard_ranks is not None:
            make_group = partial(ShardedChain, ranks=shard_ranks)
        elif options.group_size > 1 or group_ranks is not None:
            make_group = partial(
                Group,
                size=options.group_size,
                ascent=options.group_ascent,
                reduce=group_reduce,
                ranks=group_ranks,
                average=group_average,
            )
        self._plan = Plan(publish != "none", topology == "center", options.wire_dtype, make_group)
        self.links = Links(comm, self._plan, start)
        if self._plan.publishes:
            self.links.peers.states.publish(start)
        if not self._multiple and comm.rank == 0 and (self.links.spread or (options.overlap and not lockstep)):
            _LOG.warning(
                "MPI runs without MPI_THREAD_MULTIPLE: exchanges are not overlapped, and ranks wait for each other%s",
                f" ({self.links.spread})" if self.links.spread else "",
            )
        self.names = list(self.links.peers.names)  # the host of each rank
        self._records = self.links.peers.last_records
        # Between nodes a call to a rank that has failed may never return.
        guarded = faults.survivable() and self.links.spread is not None and self._multiple
        self._caller = ThreadExecutor(self._hangs) if guarded else None
        self._background = ThreadExecutor(self._stalls) if options.overlap and self._multiple and not lockstep else None
        self.executor: Executor = self._background or (GuardedExecutor(self.call) if guarded else InlineExecutor())
        self.center = self._make_center(start, options, max_delta_ratio=max_delta_ratio, seed=seed)
        self._watch_peers()

    def _make_center(
        self, start: NDArray[Any], options: CommunicationOptions, *, max_delta_ratio: float, seed: int
    ) -> Center:
        center: Center
        if options.topology == "center":
            center = RmaCenter(self, lockstep=options.mode == "lockstep", publishes=self._plan.publishes)
        elif options.topology == "gossip":
            center = GossipCenter(
                self.links.peers,
                lambda: self._heartbeats.unresponsive,
                torch.from_numpy(start),
                options.graph,
                options.degree,
                max_delta_ratio=max_delta_ratio,
                seed=seed,
            )
        else:
            center = LeaderCenter(self.links.peers, lambda: self._heartbeats.unresponsive)
        self._single = center
        return center if self.links.group is None else self.links.group.center(center)

    @property
    def lost(self) -> bool:
        """True if a rank has failed and is not left behind yet; only in jobs with ULFM."""
        watch = faults.watch()
        return watch.lost and not self._in_world.isdisjoint(watch.failed)

    @property
    def unresponsive_ranks(self) -> list[int]:
        """The ranks that are lost or without a heartbeat; also after `close`."""
        seen = self._heartbeats  # replaced when ranks are lost, as `members` is
        gone = set(range(len(self.names))) - set(seen.numbers)
        return sorted({*gone, *(seen.numbers[rank] for rank in seen.unresponsive)})

    def call(self, function: Callable[[], T]) -> T:
        """Call a function that may need a rank that has failed.

        Raises:
            RankLostError: a rank was lost, and the call failed or does not return.
        """
        try:
            if self._caller is None:
                return function()
            future = self._caller.submit(function)
            if self._caller.wait(future):
                return future.result()
        except MPI.Exception as error:
            if not faults.watch().explains(error):
                raise
            raise RankLostError(str(error)) from error
        raise RankLostError("a rank has failed that this one waits for")

    def survive(self, function: Callable[[], T]) -> T:
        """Call a function that needs other ranks; if a rank is lost, recover, then call it again.

        Only the training thread may call it, between steps. Calls of windows in the function are to be made by `call`.
        """
        while True:
            group = self.links.group
            if isinstance(group, ShardedChain) and faults.survivable():
                done = False
                with suppress(RankLostError):
                    result, done = function(), True
                # Its ranks recover at the same place: in a pass they would wait for each other.
                if group.all_done(done=done):
                    return result
            elif not self.lost:
                try:
                    return function()
                except RankLostError:
                    pass
            self.on_loss()

    def rendezvous(self, results: Sequence[float], *, last: bool = False) -> NDArray[Any]:
        """Wait until every other rank has called this as often or has failed; return all ranks' records.

        Args:
            results: up to 16 numbers that the other ranks can read.
            last: there is no further one, so that the ranks do not recover any more. Default False.

        Returns:
            The records of `rma.PeerTable`; `failed_ranks` then holds the failed ranks.
        """

        def meet() -> tuple[NDArray[Any], list[int]]:
            peers = self.links.peers
            waits_on = last and self._caller is None  # the records of lost ranks can still be read
            return peers.rendezvous(self._patience, results, bool if waits_on else lambda: self.lost)

        try:
            records, failed = self.call(meet) if last else self.survive(lambda: self.call(meet))
        except RankLostError:
            if not last:
                raise
            records, failed = self.links.peers.last_records, self._failed()
        self._records[self.members] = records
        self.failed_ranks = sorted({*self.failed_ranks, *(self.members[rank] for rank in failed)})
        return self._records.copy()

    def load(self, center: dict[str, Any], sample: torch.Tensor, global_steps: int) -> None:
        """Restore the center and the step counter; every rank calls it, and a barrier must follow.

        Args:
            center: "y", shape (P,), and "version"; equal on all ranks if the center is shared.
            sample: this chain's sample, shape (P,).
            global_steps: number of steps that all chains have claimed.
        """
        if self._plan.publishes:
            self.links.peers.states.publish(sample.cpu().numpy())
        if self.links.windows is not None:
            self.links.windows.set(center["y"].numpy(), center["version"])
        elif isinstance(self._single, GossipCenter):
            self._single.set(center["y"], center["version"])
        self.links.counter.set(global_steps)

    def recover(self, read: NDArray[Any], version: int, steps: int) -> None:
        """Continue without the ranks that are lost: connect those that are left anew; they all call it.

        Args:
            read: the center as this rank read it last, shape (P,).
            version: of that read.
            steps: number of steps that this rank knows to be claimed.

        Source: the order of calls is that of Bland et al. 2013.
        """
        began, before, comm, missing = time.monotonic(), self.links, self.links.comm, 0
        done, self._recovering = False, True
        while not done:
            comm = MPI.Intracomm(comm.Shrink())
            members = list(MPI.Group.Translate_ranks(comm.Get_group(), range(comm.size), self.comm.Get_group()))
            world = frozenset(faults.numbers_in_world(comm))
            faults.watch().leave_behind(self._in_world - world)
            try:
                left = comm if before.group is None else before.group.holders_in(comm)
                y, latest, missing = salvaged_center(before, left, read, version)
                claimed = comm.allreduce(steps_known(before, steps, lowest=comm.rank == 0), MPI.MAX)
                links = Links(comm, self._regrouped(members), y, claimed)
                links.take_over(before, latest)
                for renew in self.on_recovery:
                    renew(comm)
                done = True
            except Exception as error:
                # One more rank was lost: besides errors, collective calls may return anything then.
                if not faults.watch().explains(error):
                    raise
                comm.Revoke()
            try:
                done = bool(comm.Agree(int(done)))
            except MPI.Exception as error:
                if not faults.watch().explains(error):
                    raise
                done = False
        gone = sorted(set(self.members) - set(members))
        self.failed_ranks = sorted({*self.failed_ranks, *gone})
        # On one node the lost ranks' memory is still there; between nodes a request could crash.
        self._records[self.members] = before.peers.last_records if before.spread else before.peers.records()
        self._replace(links, members, world)
        if comm.rank == 0:
            _LOG.warning(
                "lost rank%s %s: %d ranks continue after %.1f s%s",
                "s" * (len(gone) > 1),
                ", ".join(f"{rank} ({self.names[rank]})" for rank in gone),
                comm.size,
                time.monotonic() - began,
                f"; up to {missing} updates are missing in the center's part on the lost ranks" if missing else "",
            )

    def close(self) -> None:
        """Free everything; collective. If ranks have failed, the windows stay allocated until the process ends."""
        self._heartbeats.stop(None if self._caller is None else GRACE)
        if not self.failed_ranks:
            try:
                if self._background is not None:
                    self._background.close()
                self.call(self.links.close)
            except RankLostError:
                self.failed_ranks = sorted({self.members[rank] for rank in self._failed()})
        if self.failed_ranks:
            self.links.peers.close(abandon=True)

    def _replace(self, links: Links, members: list[int], world: frozenset[int]) -> None:
        self._heartbeats.stop(0.0)
        self.links, self.members, self._in_world = links, members, world
        self._recovering = False
        if self._caller is not None:
            self._caller = ThreadExecutor(self._hangs)  # the thread may be blocked
        if self._background is not None:
            self.executor = self._background = ThreadExecutor(self._stalls)
        if not isinstance(self._single, RmaCenter):
            self._single.meet(links.peers)
        if isinstance(self.center, GroupCenter) and isinstance(links.group, Group):
            self.center.group = links.group
        self._watch_peers()

    def _regrouped(self, members: list[int]) -> Plan:
        """Return the plan for the ranks that are left: they stay in their chains."""
        group = self.links.group
        if group is None:
            return self._plan
        numbers = [self.members[rank] for rank in group.ranks]
        ranks = [now for now, number in enumerate(members) if number in numbers]
        return replace(self._plan, make_group=partial(group.again, ranks=ranks))

    def _failed(self) -> list[int]:
        """Return the failed ranks, as numbered in `links`."""
        failed = faults.watch().failed
        return [rank for rank, number in enumerate(faults.numbers_in_world(self.links.comm)) if number in failed]

    def _give_up(self) -> None:
        raise RankLostError("a rank has failed")

    def _stalls(self, waited: float) -> bool:
        """Return True if an exchange will not end, because of an unresponsive or a lost rank."""
        return (waited > STALLED and bool(self._heartbeats.unresponsive)) or self._hangs(waited)

    def _hangs(self, waited: float) -> bool:
        """Return True if a call will not end because a rank was lost."""
        return self.lost and faults.watch().seconds > GRACE

    def _watch_peers(self) -> None:
        """Start to send heartbeats to the present ranks, and to watch theirs."""
        peers = self.links.peers
        if faults.survivable():
            peers.failed = self._failed
        if self._caller is not None:
            peers.suspended = lambda: self.lost or self._recovering or peers is not self.links.peers
        self._heartbeats = Heartbeats(peers, self._patience, self.members, self.names, threaded=self._multiple)
