"""The package's face: a chain of LSAM on every MPI rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from numpy.typing import NDArray
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from typing_extensions import Unpack

from lsam_hpc import rma
from lsam_hpc.errors import InputError
from lsam_hpc.linkoptions import LinkOptions, check_links
from lsam_hpc.links import Links
from lsam_hpc.optim import Exchange, lsam
from lsam_hpc.optim.coupler import shared_tensors
from lsam_hpc.optim.flat import FlatVector
from lsam_hpc.optim.hyper import BUDGETS, SCHEDULES, Budget, Coupling, Hyper, Schedule, check_hyperparameters
from lsam_hpc.optim.options import AscentOptions, check_options
from lsam_hpc.optim.smoothed import SmoothedLoss
from lsam_hpc.optim.witness import Witness

STOP = 1 << 40  # added to the tickets when all chains are to end: more than any budget


class Options(AscentOptions, LinkOptions, total=False):
    """The keywords of LSAM that are handed on."""


class LSAM(lsam.LSAM):
    """Landscape-Smoothed SAM over MPI: every rank's chain meets the others through a center in RMA windows.

    Making it is collective: the ranks check that they have the same parameters, and all start from rank 0's. From then
    until `close` no rank waits for another. An exchange is done by a thread of its own while the chain goes on.

    Example:
        >>> with LSAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.1) as opt:  # doctest: +SKIP
        ...     for step in opt.steps(10_000):
        ...         opt.step(closure)

    Args:
        base: the optimizer that takes the step.
        rho: ascent radius; a number or a callable of the total step. Default 0.05.
        gamma: constant that keeps the ascent's division finite. Default 1e-12.
        coupling: `"elastic"` (default), `"kernel"` or `"restart"`: see `lsam_hpc.optim.LSAM`.
        pull: fraction of the gap that an exchange moves the center; a number or a callable of the total step.
            Default: 0.9 / number of ranks.
        period: local steps between exchanges; a number or a callable of the total step. Default 4.
        stiffness: lambda of the Gaussian kernel; used by `kernel`. Default 0.1.
        temperature: T of the Boltzmann distribution. Default 0: mini-batch noise only.
        center_momentum: mu of v <- mu v + delta, where v is what is added to the center. Default 0.
        schedule: `"async"` (default), or `"lockstep"`: exchanges in rank order between barriers, reproducible to the
            bit, for tests and debugging.
        budget: what `steps` counts: `"total"` (default), a shared counter, so that a fast rank takes more steps; or
            `"per-rank"`, equal shares. Lockstep always takes equal shares.
        seed: of the Langevin noise; each rank draws its own. Default 0.
        observer: called with the record of each exchange.
        witness: is shown the states of each exchange, in the thread that does it. Default: none.
        comm: the ranks. Default: COMM_WORLD.
        overlap: False: the training thread does the exchanges, as lockstep always does. Default True.
        max_delay: exchanges in flight at most; a chain that would have more waits. Default 1; others: elastic only.
        max_jump: a delta longer than this many medians of the last 64 is refused, and the chain starts again from the
            center; one that is not finite always is. Default 10.
        wire_dtype: `"float32"` (default); `"bfloat16"` or `"float16"`: half the bytes, see `rma.HalfCenter`.
        topology: `"center"` (default); `"gossip"`: each rank keeps an estimate of the center, moved by its own samples
            and those of `degree` others; `"leader"`: pulled towards the rank with the lowest smoothed loss (LSGD).
        graph: of gossip: `"random"` (default), `"ring"` or `"exponential"`.
        degree: of gossip: how many others a rank reads at an exchange. Default 1.
        publish: what other ranks can read of a chain: `"none"` (default; gossip and leader: `"sample"`), `"sample"` or
            `"perturbed"`.
        group_size: so many neighbouring ranks are one chain together and average their gradients. Default 1.
        group_ascent: `"own"` (default): each rank of a group climbs its own mini-batch's gradient (m-SAM);
            `"averaged"`: the group's mean.
        group_reduce: sums a vector over the ranks of a group in place. Default: torch.distributed if it is initialized,
            else Horovod if it is, else MPI.
        group_ranks: the ranks of this rank's group, where groups are not neighbours; the groups part the ranks, and
            `group_size` is the length of each. Default: neighbours.
        group_average: averages gradients over the group in place of `group_reduce`. Default: none.
        silent_after: seconds without a sign of life after which a rank counts as lost. Default 30.
        **options: `ascent`, `metric`, `eta`, `mask`, `interpolation` and `model`, as in `SAM`.

    Raises:
        InputError: a hyperparameter is out of its range, or the ranks' parameters differ; on all ranks alike.

    Source: Teng & Zhang 2025 (arXiv 2509.03110).
    """

    def __init__(
        self,
        base: Optimizer,
        rho: Hyper = 0.05,
        gamma: float = 1e-12,
        *,
        coupling: Coupling = "elastic",
        pull: Hyper | None = None,
        period: Hyper = 4,
        stiffness: Hyper = 0.1,
        temperature: Hyper = 0.0,
        center_momentum: float = 0.0,
        schedule: Schedule = "async",
        budget: Budget = "total",
        seed: int = 0,
        observer: Callable[[Exchange], None] | None = None,
        witness: Witness | None = None,
        comm: MPI.Intracomm | None = None,
        **options: Unpack[Options],
    ) -> None:
        # A communicator of its own keeps this class's barriers from meeting the caller's.
        comm = (MPI.COMM_WORLD if comm is None else comm).Dup()
        link: LinkOptions = {k: v for k, v in options.items() if k in LinkOptions.__annotations__}  # type: ignore[assignment]
        ascent: AscentOptions = {k: v for k, v in options.items() if k not in link}  # type: ignore[assignment]
        max_delay = link.get("max_delay", 1)

        def check() -> None:
            lsam.refuse_pair(ascent)
            check_options(base, rho, gamma, **ascent)
            check_hyperparameters(coupling, pull or 0.0, period, stiffness, temperature, center_momentum, max_delay)
            check_links(link, schedule == "lockstep", comm.size)
            if schedule not in SCHEDULES:
                raise InputError(f"schedule: expected one of {', '.join(SCHEDULES)}, found {schedule!r}")
            if budget not in BUDGETS:
                raise InputError(f"budget: expected one of {', '.join(BUDGETS)}, found {budget!r}")

        rma.agree(comm, check)
        params, statistics = shared_tensors(base, ascent.get("model"))
        shared = [*params, *statistics]
        rma.same(comm, "the number of parameters", sum(p.numel() for p in params))
        rma.same(comm, "the parameters' shapes and types", [(tuple(p.shape), p.dtype) for p in shared])
        alike = {"coupling": coupling, "schedule": schedule, "budget": budget}
        for name in ("wire_dtype", "topology", "publish", "max_delay", "overlap"):
            alike[name] = link.get(name)  # type: ignore[assignment]
        named = link.get("group_ranks") is not None
        alike["group_size"] = "as named" if named else link.get("group_size")  # type: ignore[assignment]
        if (schedule == "lockstep" or named or link.get("group_size", 1) > 1) and not callable(period):
            alike["period (in lockstep or groups)"] = period  # type: ignore[assignment]
        for what, value in alike.items():
            rma.same(comm, what, value)
        start = FlatVector(shared, device="cpu")
        host = start.gather(shared).numpy()
        comm.Bcast(host)
        start.scatter(shared)
        self.comm = comm
        self.stopped = False  # `steps` ended because a rank called `stop`
        self._closed = False
        self._loss = SmoothedLoss()
        self.lockstep = schedule == "lockstep"
        self._equal_shares = budget == "per-rank" or self.lockstep
        self.links = Links(comm, host, link, schedule == "lockstep", seed)
        del start, host  # a model's size of memory
        group = self.links.group
        if group is not None:
            ascent["average"] = group
        super().__init__(
            base,
            self.links.center,
            rho,
            gamma,
            coupling=coupling,
            pull=_default_pull(comm, link, comm.size if group is None else group.chains) if pull is None else pull,
            period=period,
            stiffness=stiffness,
            temperature=temperature,
            center_momentum=center_momentum,
            max_jump=link.get("max_jump", 10.0),
            max_delay=max_delay,
            runner=self.links.runner,
            perturbed=self.links.perturbed,
            fixed_delay=group is not None,
            seed=seed * comm.size + (comm.rank if group is None else group.index),
            observer=observer,
            witness=witness,
            **ascent,
        )
        rma.barrier(comm)  # nobody moves the center before all chains are coupled to its start

    @property
    def lost(self) -> list[int]:
        """The ranks that were lost, known after `meet` or `close`."""
        return self.links.lost

    @property
    def silent(self) -> list[int]:
        """The ranks that show no sign of life now."""
        return self.links.silent

    @property
    def shares_center(self) -> bool:
        """Whether all ranks have one center."""
        return self.links.windows is not None

    def alike(self, number: Callable[[], int]) -> int:
        """Return a number that is the same on all ranks of a group: its leader's; collective in the group."""
        group = self.links.group
        return number() if group is None else group.draw(number)

    def stop(self) -> None:
        """Have `steps` end on every rank, each at its next step, in lockstep at the next exchange.

        Any rank may call it, and none waits.
        """
        self.links.tickets.add(STOP)

    def meet(self, results: Sequence[float] = ()) -> NDArray[Any]:
        """Wait until every rank has come here as often as this one, or is lost; nobody needs another's help.

        Args:
            results: up to 16 numbers for the others to read.

        Returns:
            The records of all ranks, see `rma.Peers`; those of lost ranks as they were last.
        """
        self.drain()
        return self.links.meet(results)

    def close(self) -> None:
        """Free the windows, after the last step on every rank; a second call does nothing.

        Collective, unless ranks were lost: then it waits for those that are left, and frees nothing. MPI cannot be
        finalized then: the process must leave by `os._exit`, as `lsam` does.
        """
        if self._closed:
            return
        self._closed = True
        self.meet()
        self.links.close()
        if not self.lost:
            self.comm.Free()

    def __enter__(self) -> LSAM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    def step(self, closure: Callable[[], Any] | None = None, scaler: GradScaler | None = None) -> Any:  # noqa: ANN401
        """Take one step, as `SAM.step`, and let the others know the loss."""
        loss = super().step(closure, scaler)
        if isinstance(loss, (Tensor, float)):
            self.observe(loss)
        return loss

    def observe(self, loss: Tensor | float) -> None:
        """Tell the others this chain's mini-batch loss; `step` does it, loops in phases do it for topology `leader`."""
        self._loss.add(loss)

    def state_dict(self) -> dict[str, Any]:
        """Return the chain's state and, under "center", y and its counts as they are now."""
        state = super().state_dict()
        y = torch.empty(self.links.center.size, dtype=self._coupler.dtype)
        self.links.center.look(y)
        state["loss"] = self._loss.value
        state["center"] = {"y": y, "version": self.links.center.version, "tickets": self.links.tickets.value % STOP}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, each rank its own; collective. A shared center becomes rank 0's.

        Raises:
            InputError: a rank's state does not fit; on all ranks alike.
        """
        size = self.links.center.size

        def check() -> dict[str, Any]:
            self._coupler.checked(state_dict.get("lsam"))
            center: dict[str, Any] | None = state_dict.get("center")
            if center is None or center["y"].numel() != size:
                found = "none" if center is None else f"one of {center['y'].numel()} elements"
                raise InputError(f"state_dict: expected a center of {size} elements, found {found}")
            return center

        def load() -> None:
            try:
                super(LSAM, self).load_state_dict(state_dict)
            except (ValueError, KeyError) as error:  # torch's own, of the base optimizer's state
                raise InputError(f"state_dict: expected the state of this optimizer, found: {error}") from error

        own = rma.agree(self.comm, check)
        rma.agree(self.comm, load)
        first = self.comm.bcast(own)
        self._loss.set(state_dict["loss"])
        self.links.load(own if self.links.windows is None else first, state_dict["lsam"]["sample"], first["tickets"])
        self.links.peers.beat(self.local_step, self.total_step, state_dict["loss"])
        rma.barrier(self.comm)

    def _finish(self) -> None:
        super()._finish()
        self.links.peers.beat(self.local_step, self.total_step, self._loss.value)

    def _claim(self) -> int:
        before = self.total_step
        ticket = super()._claim()
        if ticket >= STOP:  # give it back: nobody takes this step
            self.stopped, self._claimed, self.total_step = True, False, before
            group = self.links.group
            if not self._equal_shares and (group is None or group.leads):
                self.links.tickets.add(-1)
        return ticket

    def _ticket(self) -> int:
        group, tickets = self.links.group, self.links.tickets
        if not self._equal_shares:
            return self.alike(tickets.add)
        drawn = 0
        if not self.lockstep:
            drawn = self.alike(lambda: tickets.value)
        elif self._since_exchange == 0:  # where all have met: nobody may wait for one that has stopped
            latest = np.array([tickets.value], np.int64)
            rma.wait(self.comm.Iallreduce(MPI.IN_PLACE, latest, MPI.MAX))
            drawn = int(latest[0])
        index, chains = (self.comm.rank, self.comm.size) if group is None else (group.index, group.chains)
        return STOP if drawn >= STOP else self.local_step * chains + index

    def _limit(self, total: int) -> int:
        # Lockstep needs the same number of exchanges on every rank: equal shares are rounded up.
        group = self.links.group
        chains = self.comm.size if group is None else group.chains
        return -(-total // chains) * chains if self._equal_shares else total


def _default_pull(comm: MPI.Intracomm, link: LinkOptions, chains: int) -> float:
    """Return 0.9 over the number of chains whose samples move a center."""
    topology = link.get("topology", "center")
    if topology == "gossip":
        return 0.9 / (1 + min(link.get("degree", 1), comm.size - 1))
    if topology == "leader":
        return 0.9 / comm.size
    return 0.9 / chains
