"""Landscape-Smoothed SAM: a chain that samples around a center shared with other chains."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from lsam_hpc.errors import InputError
from lsam_hpc.optim.arguments import SAMArguments
from lsam_hpc.optim.ascents.center import CenterMovement
from lsam_hpc.optim.batchnorm import preserve_module_state, recalibrate, shared_tensors
from lsam_hpc.optim.callback import StateCallback
from lsam_hpc.optim.center import Center
from lsam_hpc.optim.chain_state import ChainState, add_to_group, counts_of, set_counts, with_group
from lsam_hpc.optim.coupler import Coupler
from lsam_hpc.optim.delta_filter import DeltaFilter, WholeNorms
from lsam_hpc.optim.executor import Executor, InlineExecutor
from lsam_hpc.optim.gradients import Gradients
from lsam_hpc.optim.noise import LangevinNoise
from lsam_hpc.optim.record import Exchange
from lsam_hpc.optim.sam import SAM
from lsam_hpc.optim.shards import check_whole
from lsam_hpc.optim.steps import LocalSteps, StepCounter
from lsam_hpc.options.coupling import CouplingOptions, check_coupling
from lsam_hpc.options.keywords import documented, takes_after_two
from lsam_hpc.options.option import argument, keywords, part
from lsam_hpc.options.schedules import evaluate, evaluate_period


@dataclass(frozen=True)
class ChainArguments(CouplingOptions, SAMArguments):
    """The keywords of a chain: options and objects."""

    steps: StepCounter | None = argument()
    executor: Executor | None = argument()
    on_exchange: Callable[[Exchange], None] | None = argument()
    state_callback: StateCallback | None = argument()
    fixed_delay: bool = argument()
    publish_perturbed: bool = argument()
    whole_norms: WholeNorms | None = argument()


@documented(ChainArguments)
class LocalLSAM(SAM):
    """SAM steps that sample around a center y, which every chain moves by its own exchanges.

    A step is x <- x - lr * (grad f(x + e) + lambda (x - y)) + sqrt(2 lr T) * N(0, I), with the base optimizer in place
    of the plain step; every `period` steps the chain exchanges with the center:

    * `elastic`: delta = pull * (x - y_now); y += delta, x -= delta; no force between exchanges (lambda = 0).
    * `kernel`: y += pull * (x - y_read), then y_read is read anew; the force lambda (x - y_read) acts at every step.
    * `restart`: as kernel without the force, and the chain continues from the new y.

    kernel and restart compute the gap to y_read, the center of the chain's last exchange. A delta that is not finite,
    or longer than `max_delta_ratio` times the running median, is rejected, and the chain restarts from the center. The
    noise makes exact Langevin steps only with SGD without momentum.

    An exchange is staged at the end of a step and run by the executor. Its result is applied to the sample at the end
    of the first step after it is complete. The chain takes steps in between; restart keeps their displacement.

    Args:
        base: the optimizer that takes the step.
        center: the shared variable y: as many elements as the parameters, and the BatchNorm statistics of `model`.
        {options}
        model: as of `SAM`.
        average: as of `SAM`.
        steps: counts the steps of all chains. Default: counts this chain's steps.
        executor: runs the exchanges. Default: the training thread, immediately.
        on_exchange: called with the record of each exchange.
        state_callback: called with the states of each exchange, in the thread that runs it.
        fixed_delay: apply results at the next exchange, not before, so that all ranks of a group apply them at the
            same step. Default False.
        publish_perturbed: publish the chain's perturbed samples in place of its samples. Default False.
        whole_norms: of a chain whose parameters are DTensors, so that the vectors are this rank's parts: returns the
            norms over all ranks of the chain, given those of the parts; collective. Default: no DTensors.

    Raises:
        InputError: an option is out of its range, or the center has another size than the parameters.

    Source: Teng & Zhang 2025 (arXiv 2509.03110), theorem 1; elastic: Zhang et al. 2015, "Deep learning with Elastic
    Averaging SGD" (arXiv 1412.6651), eq. 2-3. The update rules are this project's: the paper's code is not public.
    """

    has_center = True

    @takes_after_two(ChainArguments)
    def __init__(self, base: Optimizer, center: Center, arguments: ChainArguments) -> None:
        check_coupling(part(arguments, CouplingOptions))
        refuse_pair(arguments)
        if arguments.whole_norms is None and isinstance(base, Optimizer):  # anything else is refused below
            check_whole(p for group in base.param_groups for p in group["params"])
        super().__init__(base, **keywords(arguments, SAMArguments))
        self.coupling = arguments.coupling
        self.pull = 0.9 if arguments.pull is None else arguments.pull
        self.period = arguments.period
        self.stiffness = arguments.stiffness
        self.temperature = arguments.temperature
        self.max_delay = arguments.max_delay
        self.on_exchange = arguments.on_exchange
        self.stopped = False  # True if `steps` ended before its budget, because a rank called `stop`
        self.exchanges = 0
        self.rejected = 0
        self.staleness_sum = 0
        self.staleness_max = 0
        self.blocked = 0.0  # seconds that the training thread waited for exchanges
        self.center_distance = math.nan
        self._counter = arguments.steps or LocalSteps()
        self._since_exchange = 0
        self._claimed = False
        params, statistics = shared_tensors(base, arguments.model)
        self.chain_state = ChainState(params, statistics)
        self._coupler = Coupler(
            params=params,
            statistics=statistics,
            center=center,
            coupling=arguments.coupling,
            center_momentum=float(arguments.center_momentum),
            delta_filter=DeltaFilter(arguments.max_delta_ratio),
            executor=arguments.executor or InlineExecutor(),
            max_delay=arguments.max_delay,
            fixed_delay=bool(arguments.fixed_delay),
            perturbed=bool(arguments.publish_perturbed),
            state_callback=arguments.state_callback,
            tracks_movement=arguments.ascent == "center",
            whole_norms=arguments.whole_norms,
            written=self.perturbation.drop_gathered,
        )
        self._noise = LangevinNoise(self.parameters[0].device, arguments.seed)
        if (callable(self.temperature) or self.temperature > 0) and not _is_plain_sgd(base):
            warnings.warn(
                f"temperature: the noise makes exact Langevin steps only with SGD without momentum, not with this "
                f"{type(base).__name__}: the chain samples another distribution",
                stacklevel=4,
            )

    def steps(self, total: int) -> Iterator[int]:
        """Yield the global step of each of this chain's steps until all chains together have taken `total` steps.

        Take exactly one step in the loop's body. A later call with a larger total continues where this one ended.
        """
        while (step := self._claim()) is not None and step < self._counter.limit(total):
            yield step
        self.drain()

    def drain(self) -> None:
        """Wait for all exchanges in flight and apply their results; `steps` does so at its end."""
        self._collect(0)

    def exchange(self) -> None:
        """Exchange now, and wait for the result."""
        self.check_unperturbed("exchange")
        self._begin_exchange(0, evaluate("pull", self.pull, self.global_step))
        self.drain()

    def show(self) -> None:
        """Call the state callback with the present sample and center: at the start and at the end of a run."""
        self.check_unperturbed("show")
        self.drain()
        self._coupler.show(self.local_step)

    @contextmanager
    def center(self, model: nn.Module, data: Iterable[Tensor] | None = None) -> Iterator[nn.Module]:
        """Return a context in which the model holds the center y; afterwards the sample x is restored bit for bit.

        Args:
            model: the module whose parameters are optimized.
            data: batches of inputs from which the statistics of BatchNorm layers at y are computed. None (default):
                the average of the chains' statistics if this optimizer was given the model, else the sample's own.

        Yields:
            The model.
        """
        self.check_unperturbed("center")
        with preserve_module_state(model), self._coupler.at_center():
            if data is not None:
                recalibrate(model, data)
            yield model

    def at_center(self) -> AbstractContextManager[None]:
        """Return a context in which the parameters and the shared statistics hold the center.

        It leaves the modules' training modes as they are. No step may be taken in it.
        """
        self.check_unperturbed("at_center")
        return self._coupler.at_center()

    def read_center(self) -> list[Tensor]:
        """Return a copy of the present center: a tensor for each parameter, then for each shared statistic."""
        return self._coupler.read_center()

    @property
    def shared(self) -> list[Tensor]:
        """The tensors that the center corresponds to: the parameters, then the BatchNorm statistics of the model."""
        return self._coupler.tensors

    def stats(self) -> dict[str, float]:
        """Return counts and the staleness so far: steps, exchanges, refused, staleness_mean, staleness_max."""
        return {
            "steps": self.local_step,
            "exchanges": self.exchanges,
            "refused": self.rejected,
            "staleness_mean": self.staleness_sum / self.exchanges if self.exchanges else 0.0,
            "staleness_max": self.staleness_max,
        }

    def _described(self) -> list[str]:
        counts = f"{self.local_step} steps, {self.exchanges} exchanges"
        return [*super()._described(), f"coupling={self.coupling!r}, pull={self.pull}, period={self.period}", counts]

    def add_param_group(self, param_group: dict[str, object]) -> None:
        """Raise InputError once the center exists, because its size is fixed."""
        if "_coupler" in self.__dict__:
            raise InputError("add_param_group: expected before LSAM is made, which fixes the center's size")
        super().add_param_group(param_group)

    def _adopt_groups(self) -> None:
        if "_coupler" in self.__dict__ and len(self.param_groups) > len(self._radii):
            raise InputError("base.add_param_group: expected before LSAM is made, which fixes the center's size")
        super()._adopt_groups()

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """Return SAM's state and, under "lsam", the chain: sample, last center read, noise generator, counts.

        It waits for all exchanges in flight first.
        """
        return super().state_dict()

    def _state(self) -> dict[str, Any]:
        self.drain()
        state = super()._state()
        chain = {**self.chain_state.packed(self._coupler.state_dict()), **counts_of(self)}
        add_to_group(state, {"lsam": {**chain, "generator": self._noise.generator.get_state()}})
        return state

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, with the parameters, but without the center, which all chains share.

        Raises:
            InputError: the state is not a chain's, or has another number of parameters.
        """
        super().load_state_dict(state_dict)

    def _load(self, state_dict: dict[str, Any]) -> None:
        chain = self._chain_in(with_group(state_dict, ["lsam"]))
        self.drain()
        super()._load(state_dict)
        self._coupler.load_state_dict(chain)
        self._noise.load(chain["generator"], self.local_step)
        set_counts(self, chain)

    def _chain_in(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return the chain in a saved state, or raise InputError if it does not fit."""
        return self.chain_state.unpacked(state_dict.get("lsam"), velocity=self._coupler.has_velocity)

    def _claim(self) -> int | None:
        """Return the step that was claimed and not taken yet, or else claim a global step; None if all chains stop."""
        if not self._claimed:
            step = self._counter.claim(self.local_step, self._since_exchange)
            self.stopped = step is None
            if step is None:
                return None
            self.global_step, self._claimed = step, True
        return self.global_step

    def begin_step(self, scaler: GradScaler | None = None) -> None:
        """Claim the global step, and evaluate the hyperparameters at it."""
        self._claim()
        step = self.global_step
        # All of them first: a schedule that raises must leave the parameters unchanged.
        self._period = evaluate_period(self.period, step)
        self._pull = evaluate("pull", self.pull, step)
        self._stiffness = evaluate("stiffness", self.stiffness, step)
        self._temperature = evaluate("temperature", self.temperature, step)
        super().begin_step(scaler)

    def _descend(self) -> None:
        if self._coupler.anchor is not None:
            self._coupler.anchor.add_force(self._stiffness)
        super()._descend()
        if self._temperature > 0:
            self._noise.add(self.param_groups, self._temperature)

    def _finish(self) -> None:
        self._claimed = False
        self._since_exchange += 1
        super()._finish()
        self._counter.taken(self.local_step, self.global_step)
        self._collect()
        if self._since_exchange >= self._period:
            self._begin_exchange(self.max_delay - 1, self._pull)
            self._collect()

    def _begin_exchange(self, in_flight: int, pull: float) -> None:
        self._since_exchange = 0
        self._collect(in_flight)
        self._coupler.start(pull, self.local_step)

    def ascend(
        self, ascent: Gradients, *, keep: bool = False, radius: float | None = None, further: bool = False
    ) -> None:
        """Move to x + e, as `SAM.ascend`, and stage it if the step ends with an exchange."""
        super().ascend(ascent, keep=keep, radius=radius, further=further)
        if self._since_exchange + 1 >= self._period:
            self._coupler.take_perturbed()
            self._coupler.take_perturbation(self.local_step + 1, lambda: self.perturbation.offset(self.parameters))

    def _collect(self, in_flight: int | None = None) -> None:
        """Apply the complete exchanges; with `in_flight`, wait until at most that many are in flight."""
        for record in self._coupler.collect(self.local_step, in_flight):
            if not record.accepted:
                # The values that made the sample diverge are also in the base optimizer's buffers.
                self.state.clear()
                self.forget_last()
                self.rejected += 1
            if isinstance(self._ascent, CenterMovement) and self._coupler.movement is not None:
                self._ascent.moved(self.parameters, self._coupler.movement)
            self.exchanges += 1
            self.blocked += record.blocked
            self.staleness_sum += record.staleness
            self.staleness_max = max(self.staleness_max, record.staleness)
            self.center_distance = record.center_distance
            if self.on_exchange is not None:
                self.on_exchange(record)


def refuse_pair(arguments: SAMArguments) -> None:
    """Raise InputError for a `pair`: its ranks would need equal noise and exchanges, and chains have their own."""
    if arguments.pair is not None:
        raise InputError("pair: expected with SAM only, found with LSAM, whose ranks each have a chain of their own")


def _is_plain_sgd(base: Optimizer) -> bool:
    return type(base) is torch.optim.SGD and all(group["momentum"] == 0 for group in base.param_groups)
