"""Landscape-Smoothed SAM: a chain that samples around a center shared with other chains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer
from typing_extensions import Unpack

from lsam_hpc.errors import InputError
from lsam_hpc.optim.batchnorm import kept, recalibrate
from lsam_hpc.optim.center import Center
from lsam_hpc.optim.coupler import Coupler, shared_tensors
from lsam_hpc.optim.flat import FlatVector
from lsam_hpc.optim.gradients import Gradients
from lsam_hpc.optim.guard import Guard
from lsam_hpc.optim.hyper import Coupling, Hyper, check_hyperparameters, evaluate, evaluate_period
from lsam_hpc.optim.options import AscentOptions
from lsam_hpc.optim.record import Exchange
from lsam_hpc.optim.runner import Inline, Runner
from lsam_hpc.optim.sam import SAM
from lsam_hpc.optim.witness import Witness

# What a chain counts, saved with its state.
_COUNTS = (
    "_claimed", "exchanges", "refused", "staleness_sum", "staleness_max", "blocked", "center_distance",
    "_since_exchange",
)  # fmt: skip


class LSAM(SAM):
    """SAM steps that sample around a center y, which every chain moves when it gets there.

    A step is x <- x - lr * (grad f(x + e) + lambda (x - y)) + sqrt(2 lr T) * N(0, I), with the base optimizer in place
    of the plain step; every `period` steps the chain exchanges with the center:

    * `elastic`: delta = pull * (x - y_now); y += delta, x -= delta; no force between exchanges (lambda = 0).
    * `kernel`: y += pull * (x - y_read), then y_read is read anew; the force lambda (x - y_read) acts at every step.
    * `restart`: as kernel without the force, and the chain goes on from the new y.

    The gap of kernel and restart is taken against the center that the chain was coupled to. A delta that is not finite,
    or far longer than the usual ones, is refused, and the chain starts again from the center. The noise makes exact
    Langevin steps only with SGD without momentum.

    An exchange is staged at the end of a step, done by `runner`, and its result moves the sample at the end of the
    first step that finds it there; the chain goes on in between, and restart keeps what it did.

    Args:
        base: the optimizer that takes the step.
        center: the shared variable y: as many elements as the parameters, and the BatchNorm statistics of `model`.
        rho: ascent radius; a number or a callable of the total step. Default 0.05.
        gamma: constant that keeps the ascent's division finite. Default 1e-12.
        coupling: `"elastic"` (default), `"kernel"` or `"restart"`.
        pull: fraction of the gap that an exchange moves the center; a number or a callable of the total step.
        period: local steps between exchanges; a number or a callable of the total step. Default 4.
        stiffness: lambda, precision of the Gaussian kernel lambda/2 |x - y|^2; used by `kernel`. Default 0.1.
        temperature: T of the Boltzmann distribution; 0 (default) leaves mini-batch noise only.
        center_momentum: mu of v <- mu v + delta, where v is what is added to the center. Default 0.
        max_jump: a delta longer than this many medians of the last 64 is refused. Default 10.
        max_delay: exchanges in flight at most; a chain that would have more waits. Default 1; others: elastic only.
        runner: who does the exchanges. Default: the training thread, at once.
        fixed_delay: results are taken in at the next exchange, not before: ranks that do the same exchanges then do so
            at the same step. Default False.
        perturbed: the center's chains read each other's perturbed samples instead of the samples. Default False.
        seed: of the Langevin noise. Default 0.
        observer: called with the record of each exchange.
        witness: is shown the states of each exchange, in the thread that does it.
        **ascent: `ascent`, `metric`, `eta`, `mask`, `interpolation` and `model`, as in `SAM`.

    Raises:
        InputError: a hyperparameter is out of its range, or the center has another size than the parameters.

    Source: Teng & Zhang 2025 (arXiv 2509.03110), theorem 1; elastic: Zhang et al. 2015, "Deep learning with Elastic
    Averaging SGD" (arXiv 1412.6651), eq. 2-3.
    """

    def __init__(
        self,
        base: Optimizer,
        center: Center,
        rho: Hyper = 0.05,
        gamma: float = 1e-12,
        *,
        coupling: Coupling = "elastic",
        pull: Hyper = 0.9,
        period: Hyper = 4,
        stiffness: Hyper = 0.1,
        temperature: Hyper = 0.0,
        center_momentum: float = 0.0,
        max_jump: float = 10.0,
        max_delay: int = 1,
        runner: Runner | None = None,
        fixed_delay: bool = False,
        perturbed: bool = False,
        seed: int = 0,
        observer: Callable[[Exchange], None] | None = None,
        witness: Witness | None = None,
        **ascent: Unpack[AscentOptions],
    ) -> None:
        check_hyperparameters(coupling, pull, period, stiffness, temperature, center_momentum, max_delay)
        guard = Guard(max_jump)
        refuse_pair(ascent)
        super().__init__(base, rho, gamma, **ascent)
        self.coupling = coupling
        self.pull = pull
        self.period = period
        self.stiffness = stiffness
        self.temperature = temperature
        self.max_delay = max_delay
        self.observer = observer
        self.exchanges = 0
        self.refused = 0
        self.staleness_sum = 0
        self.staleness_max = 0
        self.blocked = 0.0  # seconds that exchanges held up the training thread
        self.center_distance = math.nan
        self._since_exchange = 0
        self._claimed = False
        model = ascent.get("model")
        self._coupler = Coupler(
            *shared_tensors(base, model),
            center,
            coupling,
            float(center_momentum),
            guard,
            runner or Inline(),
            max_delay,
            fixed_delay,
            perturbed,
            witness,
        )
        self._noise: FlatVector | None = None
        self._generator = torch.Generator(self.parameters[0].device).manual_seed(seed)
        if (callable(temperature) or temperature > 0) and not _is_plain_sgd(base):
            warnings.warn(
                f"temperature: the noise makes exact Langevin steps only with SGD without momentum, not with this "
                f"{type(base).__name__}: the chain samples another distribution",
                stacklevel=2,
            )

    def steps(self, total: int) -> Iterator[int]:
        """Yield the total step of each of this chain's steps until the chains together have taken `total`.

        Take exactly one step in the loop's body. A later call with a larger total goes on where this one ended.
        """
        while (ticket := self._claim()) < self._limit(total):
            yield ticket
        self.drain()

    def drain(self) -> None:
        """Wait for the exchanges that are on their way and take their results in; `steps` ends so."""
        self._collect(0)

    def exchange(self) -> None:
        """Exchange now, and wait for the result."""
        self.check_unperturbed("exchange")
        self._begin_exchange(0, evaluate("pull", self.pull, self.total_step))
        self.drain()

    def show(self) -> None:
        """Show the witness the sample and the center as they are now: at the end of a run."""
        self.check_unperturbed("show")
        self.drain()
        self._coupler.show(self.local_step)

    @contextmanager
    def center(self, model: nn.Module, data: Iterable[Tensor] | None = None) -> Iterator[nn.Module]:
        """Hold the center y in the model's parameters, and the sample x again afterwards, bit for bit.

        Args:
            model: the module whose parameters are optimized.
            data: batches of inputs from which the statistics of BatchNorm layers at y are computed. None (default):
                the average of the chains' statistics if this optimizer was given the model, else the sample's own.

        Yields:
            The model.
        """
        self.check_unperturbed("center")
        with kept(model), self._coupler.at_center():
            if data is not None:
                recalibrate(model, data)
            yield model

    def at_center(self) -> AbstractContextManager[None]:
        """Return a context that holds the center in the parameters and the shared statistics, in the modes they are in.

        No step may be taken in it.
        """
        self.check_unperturbed("at_center")
        return self._coupler.at_center()

    def read_center(self) -> list[Tensor]:
        """Return the center as it is now: a new tensor for each parameter, then for each shared statistic."""
        return self._coupler.read_center()

    @property
    def shared(self) -> list[Tensor]:
        """What the center stands for: the parameters, then the BatchNorm statistics of the model."""
        return self._coupler.tensors

    def stats(self) -> dict[str, float]:
        """Return counts and the staleness so far: steps, exchanges, refused, staleness_mean, staleness_max."""
        return {
            "steps": self.local_step,
            "exchanges": self.exchanges,
            "refused": self.refused,
            "staleness_mean": self.staleness_sum / self.exchanges if self.exchanges else 0.0,
            "staleness_max": self.staleness_max,
        }

    def add_param_group(self, param_group: dict[str, object]) -> None:
        """Refuse a new group once the center exists: its size is fixed."""
        if "_coupler" in self.__dict__:
            raise InputError("add_param_group: expected before LSAM is made: the center's size is fixed then")
        super().add_param_group(param_group)

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """Return SAM's state and, under "lsam", the chain: sample, center it is coupled to, noise generator, counts.

        Exchanges on their way are waited for.
        """
        self.check_unperturbed("state_dict")
        self.drain()
        state = super().state_dict()
        state["lsam"] = {
            **self._coupler.state_dict(),
            "generator": self._generator.get_state(),
            **{name: getattr(self, name) for name in _COUNTS},
        }
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned: the parameters too, but not the center, which is not this chain's alone.

        Raises:
            InputError: the state is of no chain, or of one with another number of parameters.
        """
        own = self._coupler.checked(state_dict.get("lsam"))
        self.drain()
        super().load_state_dict(state_dict)
        self._coupler.load_state_dict(own)
        self._generator.set_state(own["generator"].cpu())
        for name in _COUNTS:
            setattr(self, name, own[name])

    def _ticket(self) -> int:
        """Return the total step of a new step of this chain."""
        return self.local_step

    def _limit(self, total: int) -> int:
        """Return the ticket that ends a budget of `total` steps."""
        return total

    def _claim(self) -> int:
        """Return this chain's next total step: a new ticket, unless one is in hand that was not used."""
        if not self._claimed:
            self.total_step = self._ticket()
            self._claimed = True
        return self.total_step

    def _begin(self, scaler: GradScaler | None = None) -> None:
        step = self._claim()
        # All at once, so that a callable that is wrong fails before anything has moved.
        self._period = evaluate_period(self.period, step)
        self._pull = evaluate("pull", self.pull, step)
        self._stiffness = evaluate("stiffness", self.stiffness, step)
        self._temperature = evaluate("temperature", self.temperature, step)
        super()._begin(scaler)

    def _descend(self) -> None:
        if self.coupling == "kernel":
            self._coupler.add_force(self._stiffness)
        super()._descend()
        if self._temperature > 0:
            self._diffuse(self._temperature)

    def _finish(self) -> None:
        self._claimed = False
        self._since_exchange += 1
        super()._finish()
        self._collect()
        if self._since_exchange >= self._period:
            self._begin_exchange(self.max_delay - 1, self._pull)
            self._collect()

    def _begin_exchange(self, in_flight: int, pull: float) -> None:
        self._since_exchange = 0
        self._collect(in_flight)
        self._coupler.start(pull, self.local_step)

    def ascend(self, ascent: Gradients, keep: bool = False) -> None:
        """Move to x + e along gradients, which are overwritten unless told to keep them."""
        super().ascend(ascent, keep)
        if self._since_exchange + 1 >= self._period:
            self._coupler.take_perturbed()
            self._coupler.take_perturbation(self.local_step + 1, lambda: self.perturbation.offset(self.parameters))

    def _diffuse(self, temperature: float) -> None:
        """Add sqrt(2 lr T) * N(0, I), with each group's learning rate."""
        if self._noise is None:
            self._noise = FlatVector(self.parameters)
        self._noise.vector.normal_(generator=self._generator)
        at = 0
        for group in self.param_groups:
            params = group["params"]
            noise = self._noise.views[at : at + len(params)]
            at += len(params)
            moving = [(p, n) for p, n in zip(params, noise, strict=True) if p.grad is not None]
            if moving:
                scale = math.sqrt(2 * float(group["lr"]) * temperature)
                torch._foreach_add_([p for p, _ in moving], [n for _, n in moving], alpha=scale)

    def _collect(self, in_flight: int | None = None) -> None:
        """Take in the exchanges that are done; wait until no more than `in_flight` are on their way, if given."""
        for record in self._coupler.collect(self.local_step, in_flight):
            if not record.accepted:
                # What made the sample overflow is in the base optimizer's buffers too.
                self.state.clear()
                self.last = Gradients([], [])
                self.refused += 1
            self.exchanges += 1
            self.blocked += record.blocked
            self.staleness_sum += record.staleness
            self.staleness_max = max(self.staleness_max, record.staleness)
            self.center_distance = record.center_distance
            if self.observer is not None:
                self.observer(record)


def refuse_pair(ascent: AscentOptions) -> None:
    """Raise InputError if a chain is to share its ascent with another rank: each has its own noise and exchanges."""
    if ascent.get("pair") is not None:
        raise InputError("pair: expected with SAM only, found with LSAM, whose ranks each have a chain of their own")


def _is_plain_sgd(base: Optimizer) -> bool:
    return type(base) is torch.optim.SGD and all(group["momentum"] == 0 for group in base.param_groups)
