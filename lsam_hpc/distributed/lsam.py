"""LSAM over MPI: one chain on every rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from mpi4py import MPI
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Optimizer

from lsam_hpc import rma
from lsam_hpc.distributed.communication import Communication
from lsam_hpc.distributed.groups import Group
from lsam_hpc.distributed.sharded import ShardedChain, check_sharded, copy_first, shard_ranks
from lsam_hpc.distributed.start import StartingLSAM
from lsam_hpc.distributed.steps import STOP, EqualShares, GuardedCounter, LockstepShares, SharedSteps
from lsam_hpc.errors import InputError, RankLostError
from lsam_hpc.optim import Exchange
from lsam_hpc.optim.arguments import SAMArguments, check_arguments
from lsam_hpc.optim.batchnorm import shared_tensors
from lsam_hpc.optim.callback import StateCallback
from lsam_hpc.optim.chain_state import add_to_group, with_group
from lsam_hpc.optim.flat import FlatVector
from lsam_hpc.optim.shards import local_parts
from lsam_hpc.optim.smoothed import SmoothedLoss
from lsam_hpc.options.ascent import AscentOptions
from lsam_hpc.options.communication import CommunicationOptions, check_communication, check_start
from lsam_hpc.options.coupling import CouplingOptions, StartOptions, StepOptions, check_coupling
from lsam_hpc.options.keywords import documented, takes
from lsam_hpc.options.option import argument, check, keywords, part
from lsam_hpc.rma.collective_context import CollectiveContext
from lsam_hpc.util import launcher
from lsam_hpc.util.preflight import check_torchrun


@dataclass(frozen=True)
class LSAMArguments(StartOptions, StepOptions, CommunicationOptions, CouplingOptions, AscentOptions):
    """The keywords of LSAM: options and objects."""

    comm: MPI.Intracomm | None = argument()
    model: nn.Module | None = argument()
    on_exchange: Callable[[Exchange], None] | None = argument()
    state_callback: StateCallback | None = argument()
    group_reduce: Callable[[Tensor], None] | None = argument()
    group_ranks: Sequence[int] | None = argument()
    group_average: Callable[[list[Tensor]], None] | None = argument()


@documented(LSAMArguments)
class LSAM(StartingLSAM, CollectiveContext):
    """Landscape-Smoothed SAM over MPI: every rank runs a chain, and the chains share a center in RMA windows.

    The constructor is collective: it checks that all ranks have parameters of the same shapes, and copies rank 0's to
    all. From then until `close` no rank waits for another. A separate thread exchanges while the chain computes.

    Examples:
        >>> with LSAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.1) as opt:  # doctest: +SKIP
        ...     for step in opt.steps(10_000):
        ...         opt.step(closure)

    Args:
        base: the optimizer that takes the step.
        {options}
        comm: communicator of the ranks. Default: COMM_WORLD.
        model: module whose BatchNorm statistics move at x only, and are averaged by the center. Needed if `fully_shard`
            has sharded the parameters: the ranks of their device mesh are then one chain.
        on_exchange: called with the record of each exchange.
        state_callback: called with the states of each exchange, of which a rank of a sharded chain has its part, in the
            thread that runs it.
        group_reduce: sums a vector over the ranks of a group in place. Default: torch.distributed if it is initialized,
            else Horovod if it is, else MPI.
        group_ranks: the ranks of this rank's group, where groups are not neighbours; the groups partition the ranks.
        group_average: averages gradients over the group in place of `group_reduce`.

    Options that are numbers may be functions of the global step where their type says so. Couplings: see `LocalLSAM`.

    Raises:
        InputError: an option is out of its range, or the ranks' parameters differ; on all ranks alike.

    Source: Teng & Zhang 2025 (arXiv 2509.03110).
    """

    @takes(LSAMArguments)
    def __init__(self, base: Optimizer, arguments: LSAMArguments) -> None:
        if arguments.comm is None:
            check_torchrun(MPI.COMM_WORLD.size)
        # A duplicate: this class's collectives must not match those of the caller.
        comm = (MPI.COMM_WORLD if arguments.comm is None else arguments.comm).Dup()
        sam = SAMArguments(**keywords(arguments, AscentOptions), model=arguments.model)

        def check_all() -> tuple[CommunicationOptions, list[int] | None]:
            check_arguments(base, sam)
            ranks = shard_ranks(shared_tensors(base, None)[0], comm)
            check_coupling(part(arguments, CouplingOptions))
            options = part(arguments, CommunicationOptions)
            if ranks is not None:
                excluded = ("group_ranks", "group_reduce", "group_average")
                check_sharded(options, ranks, {name: getattr(arguments, name) for name in excluded})
                options = replace(options, group_size=1)  # the chains are those of the mesh
            check_communication(options, comm.size, neighbours=arguments.group_ranks is None)
            check(part(arguments, StepOptions))
            check(part(arguments, StartOptions))
            check_start("synchronous_steps", arguments.synchronous_steps, options.topology, arguments.ascent)
            if arguments.group_ranks is not None:
                options = replace(options, group_size=len(arguments.group_ranks))
            return options, ranks

        options, ranks = rma.raise_on_all(comm, check_all)
        params, statistics = shared_tensors(base, arguments.model)
        _require_equal(comm, arguments, [*params, *statistics], ranks)
        shared = [*local_parts(params), *statistics]
        start = FlatVector(shared, device="cpu")
        host = start.gather(shared).numpy()
        copy_first(comm, ranks, host)
        start.scatter(shared)
        self.comm = comm
        self._closed = False
        self._loss = SmoothedLoss()
        self._stop_wanted = False
        self.lockstep = options.mode == "lockstep"
        self.communication = Communication(
            comm,
            host,
            options,
            seed=arguments.seed,
            max_delta_ratio=arguments.max_delta_ratio,
            shard_ranks=ranks,
            **{name: getattr(arguments, name) for name in ("group_reduce", "group_ranks", "group_average")},
        )
        del start, host  # frees as much memory as the parameters take
        group = self.communication.links.group
        self.claims = counter = GuardedCounter(self.communication)
        steps: SharedSteps
        if self.lockstep:
            steps = LockstepShares(counter, self._report_step, comm, group)
        elif arguments.budget == "per-rank":
            steps = EqualShares(counter, self._report_step, comm, group)
        else:
            steps = SharedSteps(counter, self._report_step, group)
        chains, index = (comm.size, comm.rank) if group is None else (group.chains, group.index)
        coupling = keywords(arguments, CouplingOptions)
        if arguments.pull is None:
            coupling["pull"] = _default_pull(options, comm.size, chains)
        sharded = group if isinstance(group, ShardedChain) else None
        super().__init__(
            base,
            self.communication.center,
            **keywords(replace(sam, average=group if isinstance(group, Group) else None), SAMArguments),
            # Ranks that hold the same elements draw the same noise.
            **{**coupling, "seed": arguments.seed * comm.size + (index if sharded is None else comm.rank)},
            whole_norms=None if sharded is None else self._whole_norms,
            steps=steps,
            executor=self.communication.executor,
            publish_perturbed=self.communication.perturbed,
            fixed_delay=group is not None,
            on_exchange=arguments.on_exchange,
            state_callback=arguments.state_callback,
        )
        if arguments.synchronous_steps and comm.size > 1:
            seed = arguments.seed * comm.size
            if sharded is None:
                average = everyone = Group(comm, comm.size, options.group_ascent)
                seeds = (seed, seed + index)
            else:
                shard = sharded.comm.rank
                same = [rank for rank, other in enumerate(comm.allgather(shard)) if other == shard]
                average = Group(comm, len(same), options.group_ascent, ranks=same)
                everyone = Group(comm, comm.size, options.group_ascent, average=average)
                seeds = (seed + shard, seed + comm.rank)
            self._prepare_start(arguments.synchronous_steps, (everyone, average), steps, chains, seeds)
        launcher.watch().guard()
        rma.barrier(comm)  # no rank changes the center before all chains have read its start
        self.communication.on_loss = self._recover

    @property
    def failed_ranks(self) -> list[int]:
        """The ranks that failed, as of the last `rendezvous` or `close`."""
        return self.communication.failed_ranks

    @property
    def unresponsive_ranks(self) -> list[int]:
        """The ranks without a heartbeat for `heartbeat_timeout` seconds."""
        return self.communication.unresponsive_ranks

    @property
    def shares_center(self) -> bool:
        """True if all ranks share one center (topology center)."""
        return self.communication.links.windows is not None

    @property
    def leads_group(self) -> bool:
        """True if this rank leads its group, or the ranks are in no groups."""
        group = self.communication.links.group
        return group is None or group.leads

    def alike(self, number: Callable[[], int]) -> int:
        """Return the number that the leader of this rank's group computes; collective in the group.

        In the synchronous start all ranks are one group.
        """
        assert isinstance(self._counter, SharedSteps)
        return self._counter.alike(number)

    def stop(self) -> None:
        """End `steps` on every rank: at its next step, in lockstep at the next exchange.

        Any rank may call this, and no rank waits.
        """
        self._stop_wanted = True
        with suppress(RankLostError):  # the recovery repeats it
            self.claims.add(STOP)

    def rendezvous(self, results: Sequence[float] = ()) -> NDArray[Any]:
        """Wait until every other rank has called this as often as this one, or has failed.

        Args:
            results: up to 16 numbers that the other ranks can read.

        Returns:
            The records of all ranks, see `rma.PeerTable`; those of failed ranks are their last ones.
        """
        self.drain()
        return self.communication.rendezvous(results)

    def close(self) -> None:
        """Free the windows, after the last step on every rank; a second call does nothing.

        Collective. If ranks have failed, it waits for the other ranks only, and frees nothing. MPI cannot be finalized
        then: the process must end by `os._exit`, as `lsam` does.
        """
        if self._closed:
            return
        self._closed = True
        self.drain()
        self.communication.rendezvous((), last=True)
        self.communication.close()
        if not self.failed_ranks:
            if self._start is not None:
                self._start.close()
            self.comm.Free()

    def _whole_norms(self, norms: list[float]) -> list[float]:
        group = self.communication.links.group  # made anew when ranks are lost
        assert isinstance(group, ShardedChain)
        return group.whole_norms(norms)

    def _report_step(self, local_step: int, global_step: int) -> None:
        self.communication.links.peers.update(local_step, global_step, self._loss.value)

    def observe(self, loss: Tensor | float) -> None:
        """Add a mini-batch loss to the published one. `step` calls it; loops in phases must with topology `leader`."""
        self._loss.add(loss)

    def state_dict(self) -> dict[str, Any]:
        """Return the chain's state and, under "center", the present y, its version and the claimed steps."""
        return super().state_dict()

    def _state(self) -> dict[str, Any]:
        if self._closed:
            raise InputError("state_dict: expected a call before close(), which ends the exchange, found one after it")
        state = super()._state()
        y = torch.empty(self.communication.center.size, dtype=self._coupler.dtype)
        self.communication.center.peek(y)
        center = {
            "y": self.chain_state.pieces(y),
            "version": self.communication.center.version,
            "tickets": self.survive(lambda: self.claims.value) % STOP,
        }
        add_to_group(state, {"loss": self._loss.value, "center": center})
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned on this rank; collective. A shared center is loaded from rank 0's state.

        Raises:
            InputError: a rank's state does not fit; on all ranks alike.
        """
        rma.raise_on_all(self.comm, lambda: self.check_unperturbed("load_state_dict"))
        super().load_state_dict(state_dict)

    def _load(self, state_dict: dict[str, Any]) -> None:
        state_dict = with_group(state_dict, ["lsam", "center", "loss"])

        def check() -> dict[str, Any]:
            self._chain_in(state_dict)
            center: dict[str, Any] | None = state_dict.get("center")
            if center is None:
                size = self.communication.center.size
                raise InputError(f"state_dict: expected a center of {size} elements, found none")
            return {**center, "y": self.chain_state.vector(center["y"])}

        def load() -> None:
            try:
                super(LSAM, self)._load(state_dict)
            except (ValueError, KeyError) as error:  # torch raises them for the base optimizer's state
                raise InputError(f"state_dict: expected the state of this optimizer, found: {error}") from error

        center = rma.raise_on_all(self.comm, check)
        state_dict = self._begin_load(state_dict)
        rma.raise_on_all(self.comm, load)
        self._end_load()
        first = rma.broadcast(self.communication.links.holders, center)
        steps = self.comm.bcast(first["tickets"])
        self._loss.set(state_dict["loss"])
        sample = self.chain_state.vector(state_dict["lsam"]["sample"])
        self.communication.load(first if self.shares_center else center, sample, steps)
        self._report_step(self.local_step, self.global_step)
        rma.barrier(self.comm)


def _require_equal(
    comm: MPI.Intracomm, arguments: LSAMArguments, shared: Sequence[Tensor], ranks: Sequence[int] | None
) -> None:
    """Raise InputError on all ranks unless the tensors' shapes and the options that must be equal are equal."""
    rma.require_equal(comm, "the number of parameters", sum(p.numel() for p in shared))
    rma.require_equal(comm, "the parameters' shapes and types", [(tuple(p.shape), p.dtype) for p in shared])
    names = ["coupling", "mode", "budget", "wire_dtype", "topology", "publish", "max_delay", "overlap"]
    names.append("synchronous_steps")
    named = arguments.group_ranks is not None
    if not named:
        names.append("group_size")
    for name in names:
        rma.require_equal(comm, name, getattr(arguments, name))
    rma.require_equal(comm, "group_ranks (given or not)", named)
    rma.require_equal(comm, "the number of ranks that hold a chain's shards", 1 if ranks is None else len(ranks))
    together = (
        ranks is not None
        or arguments.mode == "lockstep"
        or named
        or arguments.group_size > 1
        or arguments.synchronous_steps
    )
    if together and not callable(arguments.period):
        rma.require_equal(comm, "period (in lockstep or groups)", arguments.period)


def _default_pull(options: CommunicationOptions, ranks: int, chains: int) -> float:
    """Return 0.9 divided by the number of chains whose samples move a center."""
    if options.topology == "gossip":
        return 0.9 / (1 + min(options.degree, ranks - 1))
    return 0.9 / (ranks if options.topology == "leader" else chains)
