"""The coupling of a chain to its center, and their exchanges."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.optim.anchor import Anchor
from lsam_hpc.optim.callback import StateCallback
from lsam_hpc.optim.center import Center
from lsam_hpc.optim.delta_filter import DeltaFilter, WholeNorms, gap_norms
from lsam_hpc.optim.executor import Executor, InlineExecutor
from lsam_hpc.optim.flat import FlatVector
from lsam_hpc.optim.in_flight import BufferPool, ExchangeBuffers, InFlightExchange
from lsam_hpc.optim.record import Exchange
from lsam_hpc.optim.shards import local_parts
from lsam_hpc.options.coupling import Coupling


class Coupler:
    """Exchanges a sample with its center; both are flat vectors of P parameters and S statistics.

    The training thread calls `start`, which stages the sample and submits the exchange to the executor, and `collect`,
    which applies the result to the sample. All arithmetic is on host vectors, in the executor's thread.

    Args:
        params: the chain's parameters; P elements, or of DTensors the P elements of this rank's parts.
        statistics: the BatchNorm statistics of the model, S elements.
        center: the shared variable y, P + S elements.
        coupling: `"elastic"`, `"kernel"` or `"restart"`: see `LocalLSAM`.
        center_momentum: mu >= 0 and < 1 of v <- mu v + delta, where v is added to the center.
        delta_filter: decides which deltas are added.
        executor: runs the exchanges.
        max_delay: largest number of exchanges in flight, >= 1.
        fixed_delay: True to apply results only where `collect` waits for them; without effect for `InlineExecutor`.
        perturbed: True to publish the perturbed sample, which `take_perturbed` stages, instead of the sample.
        state_callback: receives the states of each exchange. None: no callback.
        tracks_movement: True to set `movement`.
        whole_norms: as of `gap_norms`.
        written: called after the parameters were written.

    Raises:
        InputError: the center's size is not P + S.
    """

    def __init__(
        self,
        *,
        params: list[Tensor],
        statistics: list[Tensor],
        center: Center,
        coupling: Coupling,
        center_momentum: float,
        delta_filter: DeltaFilter,
        executor: Executor,
        max_delay: int,
        fixed_delay: bool,
        perturbed: bool,
        state_callback: StateCallback | None,
        tracks_movement: bool,
        whole_norms: WholeNorms | None,
        written: Callable[[], None],
    ) -> None:
        self.params = local_parts(params)
        self.tensors = [*self.params, *statistics]
        self._whole_norms, self._written = whole_norms, written
        self.coupling, self.center_momentum = coupling, center_momentum
        self.center, self.delta_filter = center, delta_filter
        self.movement: list[Tensor] | None = None  # center as last but one read, minus as last read; on the CPU
        self.alone = False  # True once the executor gave up an exchange: no further one starts
        self._executor = executor
        self._inline = isinstance(executor, InlineExecutor)
        self.fixed_delay = fixed_delay
        self._size = sum(p.numel() for p in self.params)
        self._state_callback = state_callback

        self._buffers = BufferPool(self.params, self.tensors, max_delay, perturbed=perturbed, movement=tracks_movement)
        self._in_flight: deque[InFlightExchange] = deque()
        like = self._buffers.vector
        if center.size != like.numel():
            raise InputError(
                f"center: expected {like.numel()} elements, one per parameter and BatchNorm statistic, "
                f"found {center.size}"
            )
        self._center = torch.empty_like(like)  # as last read
        self._center_version = center.read(self._center)
        # If the sample is needed after x - y is computed, x - y gets its own vector instead of overwriting it.
        self._gap = torch.empty_like(like) if center.publishes or coupling == "restart" or state_callback else None
        self._velocity = torch.zeros_like(like) if center_momentum else None
        self.anchor = Anchor(params, statistics, self._center) if coupling == "kernel" else None

    @property
    def dtype(self) -> torch.dtype:
        """The element type of the vectors."""
        return self._center.dtype

    def take_perturbed(self) -> None:
        """Stage the current parameters, at x + e, to be published by the next exchange."""
        self._buffers.take_perturbed()

    def take_perturbation(self, step: int, offset: Callable[[], list[Tensor]]) -> None:
        """Stage e for the state callback of the next exchange, if the callback wants it.

        Args:
            step: local steps done when the next exchange is staged.
            offset: returns e, one tensor per parameter.
        """
        if self._state_callback is None or not self._state_callback.wants("perturbation", step):
            return
        self._buffers.take_perturbation(local_parts(offset()))

    @torch.no_grad()
    def start(self, pull: float, step: int) -> None:
        """Stage the sample and submit its exchange; does nothing once an exchange was given up.

        Args:
            pull: fraction of x - y that is added to the center.
            step: local steps done.
        """
        if self.alone:
            return
        clock = time.perf_counter()
        buffers = self._buffers.stage()
        try:
            future = self._executor.submit(partial(self._exchange, buffers, pull, step))
        except BaseException:
            self._buffers.free.append(buffers)
            raise
        self._in_flight.append(InFlightExchange(buffers, future, step, time.perf_counter() - clock))

    def collect(self, step: int, in_flight: int | None = None) -> Iterator[Exchange]:
        """Apply the results of completed exchanges to the sample, in order, and yield their records.

        Args:
            step: local steps done.
            in_flight: wait until at most this many exchanges are in flight. Default None: do not wait.
        """
        while self._in_flight:
            exchange = self._in_flight[0]
            clock = time.perf_counter()
            if in_flight is not None and len(self._in_flight) > in_flight:
                if not self._executor.wait(exchange.future):
                    self.alone = True
                    self._in_flight.clear()
                    return
            elif (self.fixed_delay and not self._inline) or not exchange.future.done():
                return
            self._in_flight.popleft()
            self._buffers.free.append(exchange.buffers)
            record = exchange.future.result()
            if not exchange.discarded:
                self._apply(exchange.buffers, record)
            if exchange.buffers.movement is not None:
                self.movement = exchange.buffers.movement.views
            blocked = exchange.blocked + time.perf_counter() - clock
            yield replace(record, blocked=blocked, delay=step - exchange.step)

    @contextmanager
    def at_center(self) -> Iterator[None]:
        """Hold the current center in the parameters and statistics during the body; restore them exactly afterwards."""
        with torch.no_grad():
            sample = torch._foreach_clone(self.tensors)
            y = FlatVector(self.tensors, device="cpu")
            self.center.peek(y.vector)
        try:
            y.scatter(self.tensors)
            self._written()
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.tensors, sample)
            self._written()

    @torch.no_grad()
    def read_center(self) -> list[Tensor]:
        """Return the current center as new tensors shaped like the parameters, then the statistics."""
        y = FlatVector(self.tensors, device="cpu")
        self.center.peek(y.vector)
        tensors = [torch.empty_like(t) for t in self.tensors]
        y.scatter(tensors)
        return tensors

    @property
    def busy(self) -> bool:
        """True if an exchange is in flight."""
        return bool(self._in_flight)

    def last_read(self) -> tuple[NDArray[Any], int]:
        """Return the center as read last, shape (P + S,), and its version."""
        return self._center.numpy(), self._center_version

    def renew(self, executor: Executor) -> None:
        """Continue with another executor; an exchange that the old one gave up is forgotten.

        Args:
            executor: runs the further exchanges.
        """
        self._executor = executor
        if self.alone:  # the thread of that exchange may still write to its vectors
            self._center = self._center.clone()
            self._buffers.renew()
            self.alone = False

    def state_dict(self) -> dict[str, Any]:
        """Return the sample, the center it is coupled to, and the center momentum; no exchange may be in flight."""
        sample = FlatVector(self.tensors, dtype=self._center.dtype)
        return {
            "sample": sample.gather(self.tensors),
            "anchor": self._center.clone(),
            "anchor_version": self._center_version,
            "velocity": None if self._velocity is None else self._velocity.clone(),
            "guard": self.delta_filter.state_dict(),
        }

    @property
    def has_velocity(self) -> bool:
        """True if the center has momentum."""
        return self._velocity is not None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned, and set the parameters and statistics to the saved sample."""
        sample = FlatVector(self.tensors, dtype=self._center.dtype)
        sample.vector.copy_(state["sample"])
        sample.scatter(self.tensors)
        self._written()
        self._center.copy_(state["anchor"])
        if self.anchor is not None:
            self.anchor.load(self._center)
        self._center_version = state["anchor_version"]
        if self._velocity is not None:
            self._velocity.copy_(state["velocity"])
        self.delta_filter.load_state_dict(state["guard"])

    @torch.no_grad()
    def _exchange(self, buffers: ExchangeBuffers, pull: float, step: int) -> Exchange:
        """Move the center as the coupling defines, and put the vector that moves the chain into the buffers."""
        buffers.sample.land()
        x, y = buffers.sample.host, self._center
        with self.center.exclusive_turn():
            began, clock = time.time(), time.perf_counter()
            self.center.begin_exchange(x, pull)
            if self.coupling == "elastic":
                self._center_version = self._read_center(buffers)
            version_read = version_added = self._center_version
            gap = torch.sub(x, y, out=x if self._gap is None else self._gap)
            norms = gap_norms(gap, self._size, y if self.delta_filter.needs_reference else None, self._whole_norms)
            accepted = self.delta_filter.accepts(pull * norms.all, norms.reference)
            delta = gap.mul_(pull)
            if accepted:
                added = delta if self._velocity is None else self._velocity.mul_(self.center_momentum).add_(delta)
                version_added = self.center.add(added)
                self._publish(buffers)
            callback_began = time.perf_counter()
            self._call_back(buffers, step, version_read)
            callback_seconds = time.perf_counter() - callback_began
            if self.coupling != "elastic":
                self._center_version = self._read_center(buffers)
            elif not accepted:
                self._center_version = self.center.read(y)
            seconds = time.perf_counter() - clock - callback_seconds
        if not accepted or self.coupling == "kernel" or (self.coupling == "restart" and self._inline):
            x.copy_(y)
        elif self.coupling == "restart":
            torch.sub(y, x, out=x)
        elif x is not delta:
            x.copy_(delta)
        buffers.sample.send()
        passes = 2 if accepted or self.coupling == "elastic" else 1
        return Exchange(
            step=step,
            began=began,
            seconds=seconds,
            version_read=version_read,
            version_added=version_added,
            center_distance=norms.parameters,
            delta_norm=norms.parameters * pull,
            bytes=self.center.nbytes * passes,
            accepted=accepted,
        )

    def _read_center(self, buffers: ExchangeBuffers) -> int:
        """Read the center, and put its movement since the exchange before into the buffers; return its version."""
        if buffers.movement is None:
            return self.center.read(self._center)
        buffers.movement.vector.copy_(self._center[: self._size])
        version = self.center.read(self._center)
        buffers.movement.vector.sub_(self._center[: self._size])
        return version

    def _publish(self, buffers: ExchangeBuffers) -> None:
        """Publish the sample, or the perturbed sample if one is staged, where the center publishes states."""
        if not self.center.publishes:
            return
        if buffers.perturbed is None:
            self.center.publish(buffers.sample.host)
        elif buffers.perturbed.taken:
            self.center.publish(buffers.perturbed.host_vector())

    def _call_back(self, buffers: ExchangeBuffers, step: int, version: int) -> None:
        """Pass the sample, the center that the delta was computed against, and the staged e to the callback."""
        if self._state_callback is None:
            return
        states = {"sample": buffers.sample.host[: self._size], "center": self._center[: self._size]}
        if buffers.perturbation is not None and buffers.perturbation.taken:
            states["perturbation"] = buffers.perturbation.host_vector()
        self._state_callback.on_states(step, version, states)

    @torch.no_grad()
    def show(self, step: int) -> None:
        """Pass the current sample and center to the state callback; no exchange may be in flight.

        Args:
            step: local steps done. If 0, the center is the one that the chain starts from.
        """
        if self._state_callback is None:
            return
        sample, y, version = FlatVector(self.tensors, device="cpu"), self._center, self._center_version
        if step:
            y, version = torch.empty_like(y), self.center.version
            self.center.peek(y)
        states = {"sample": sample.gather(self.tensors)[: self._size], "center": y[: self._size]}
        self._state_callback.on_states(step, version, states)

    @torch.no_grad()
    def _apply(self, buffers: ExchangeBuffers, record: Exchange) -> None:
        """Apply the result of an exchange to the chain."""
        views = buffers.sample.views()
        params = views[: len(self.params)]
        if not record.accepted:
            torch._foreach_copy_(self.tensors, views)
            for exchange in self._in_flight:
                exchange.discarded = True  # its sample was staged before this reset
        elif self.coupling == "elastic":
            torch._foreach_sub_(self.params, params)
        elif self.coupling == "restart":
            # With another executor the buffers hold y - x at the staging: adding it keeps the steps since.
            (torch._foreach_copy_ if self._inline else torch._foreach_add_)(self.params, params)
        if self.anchor is not None:
            self.anchor.load_views(views)
        self._written()
