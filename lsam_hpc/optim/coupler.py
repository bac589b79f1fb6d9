"""What ties a chain to its center, and the exchange between the two."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lsam_hpc.errors import InputError
from lsam_hpc.optim.batchnorm import layers
from lsam_hpc.optim.center import Center
from lsam_hpc.optim.flat import FlatVector
from lsam_hpc.optim.flight import Aside, Flight, Slot
from lsam_hpc.optim.guard import Guard
from lsam_hpc.optim.hyper import Coupling
from lsam_hpc.optim.record import Exchange
from lsam_hpc.optim.runner import Inline, Runner
from lsam_hpc.optim.staging import Staging
from lsam_hpc.optim.witness import Witness


def shared_tensors(base: Optimizer, model: nn.Module | None) -> tuple[list[Tensor], list[Tensor]]:
    """Return what a chain shares with its center: the parameters, and BatchNorm's running statistics of the model.

    The statistics follow the parameters in the center's vector: y's are the average of the chains', moved by the same
    exchanges, while each chain keeps its own.
    """
    params = [p for group in base.param_groups for p in group["params"]]
    found = layers(model) if model is not None else []
    statistics = [s for layer in found for s in (layer.running_mean, layer.running_var) if s is not None]
    return params, statistics


class Coupler:
    """The sample and the center that it is coupled to, as flat vectors of P parameters and S statistics.

    The training thread calls `start`, which stages the sample and hands the exchange to the runner, and `collect`,
    which moves the sample by what came of it. All arithmetic is on host vectors, in the runner's thread.

    Args:
        params: the chain's parameters, P elements.
        statistics: the BatchNorm statistics that go with them, S elements.
        center: the shared variable, P + S elements.
        coupling: `"elastic"`, `"kernel"` or `"restart"`: see `LSAM`.
        center_momentum: mu of v <- mu v + delta, where v is what is added to the center.
        guard: refuses deltas.
        runner: who does the exchanges.
        max_delay: exchanges in flight at most.
        fixed_delay: take results in only where they are waited for.
        perturbed: what is published for others to read is the perturbed sample, given to `take_perturbed`.
        witness: is shown the states of each exchange.

    Raises:
        InputError: the center has another size.
    """

    def __init__(
        self,
        params: list[Tensor],
        statistics: list[Tensor],
        center: Center,
        coupling: Coupling,
        center_momentum: float,
        guard: Guard,
        runner: Runner,
        max_delay: int,
        fixed_delay: bool,
        perturbed: bool,
        witness: Witness | None,
    ) -> None:
        self.params, self.tensors = params, [*params, *statistics]
        self.coupling, self.center_momentum = coupling, center_momentum
        self.center, self.guard = center, guard
        self.alone = False  # an exchange was given up: no other is begun
        self._runner = runner
        self._inline = isinstance(runner, Inline)
        self._waits_only = fixed_delay and not self._inline
        self._size = sum(p.numel() for p in params)
        self._witness = witness

        def slot() -> Slot:
            return Slot(Staging(self.tensors), Aside(Staging(self.tensors)) if perturbed else None, None)

        self._free = [slot() for _ in range(max_delay)]
        # One more than there are slots: it is filled before the slot that it goes out with is free.
        self._perturbed = slot().perturbed
        self._perturbation: Aside | None = None
        self._flying: deque[Flight] = deque()
        like = self._free[0].sample.host
        if center.size != like.numel():
            raise InputError(
                f"center: expected {like.numel()} elements, one per parameter and BatchNorm statistic, "
                f"found {center.size}"
            )
        self._center = torch.empty_like(like)  # as read last
        self._center_version = center.read(self._center)
        # Where the sample is needed after the gap has been taken, the gap has a vector of its own.
        self._gap = torch.empty_like(like) if center.shares or coupling == "restart" or witness else None
        self._velocity = torch.zeros_like(like) if center_momentum else None
        self._anchor = FlatVector(self.tensors, dtype=like.dtype) if coupling == "kernel" else None
        if self._anchor is not None:
            self._anchor.vector.copy_(self._center)

    @property
    def dtype(self) -> torch.dtype:
        """Of the vectors."""
        return self._center.dtype

    def add_force(self, stiffness: float) -> None:
        """Add lambda * (x - y_read) to the gradients (kernel only)."""
        assert self._anchor is not None
        anchors = self._anchor.views[: len(self.params)]
        pulled = [(p, p.grad, a) for p, a in zip(self.params, anchors, strict=True) if p.grad is not None]
        xs, grads, ys = ([triple[i] for triple in pulled] for i in range(3))
        # New tensors: the old ones may be the next stale ascent's.
        forced = torch._foreach_add(grads, torch._foreach_sub(xs, ys), alpha=stiffness)
        for x, grad in zip(xs, forced, strict=True):
            x.grad = grad.to(x.dtype)

    def take_perturbed(self) -> None:
        """Stage the parameters as they are now, at x + e, for others to read; they go out with the next exchange."""
        if self._perturbed is not None:
            self._perturbed.take(self.tensors)

    def take_perturbation(self, step: int, offset: Callable[[], list[Tensor]]) -> None:
        """Stage e for the witness, if it wants it; it goes out with the next exchange.

        Args:
            step: local steps done when the next exchange is staged.
            offset: returns e, a tensor per parameter.
        """
        if self._witness is None or not self._witness.wants("perturbation", step):
            return
        if self._perturbation is None:
            self._perturbation = Aside(Staging(self.params))
        self._perturbation.take(offset())

    @torch.no_grad()
    def start(self, pull: float, step: int) -> None:
        """Stage the sample and have it exchanged; nothing happens once an exchange was given up.

        Args:
            pull: fraction of the gap that the center moves.
            step: local steps done.
        """
        if self.alone:
            return
        clock = time.perf_counter()
        slot = self._free.pop()
        slot.sample.take(self.tensors)
        slot.perturbed, self._perturbed = self._perturbed, slot.perturbed
        slot.perturbation, self._perturbation = self._perturbation, slot.perturbation
        for aside in (self._perturbed, self._perturbation):
            if aside is not None:
                aside.taken = False
        try:
            future = self._runner.submit(lambda: self._move(slot, pull, step))
        except BaseException:
            self._free.append(slot)
            raise
        self._flying.append(Flight(slot, future, step, time.perf_counter() - clock))

    def collect(self, step: int, in_flight: int | None = None) -> Iterator[Exchange]:
        """Move the sample by the results that are there, and yield their records.

        Args:
            step: local steps done.
            in_flight: wait until no more exchanges than this are on their way. Default: do not wait.
        """
        while self._flying:
            flight = self._flying[0]
            clock = time.perf_counter()
            if in_flight is not None and len(self._flying) > in_flight:
                if not self._runner.wait(flight.future):
                    self.alone = True
                    self._flying.clear()
                    return
            elif self._waits_only or not flight.future.done():
                return
            self._flying.popleft()
            self._free.append(flight.slot)
            record = flight.future.result()
            if not flight.void:
                self._apply(flight.slot, record)
            blocked = flight.blocked + time.perf_counter() - clock
            yield replace(record, blocked=blocked, delay=step - flight.step)

    @contextmanager
    def at_center(self) -> Iterator[None]:
        """Hold the center as it is now in the parameters and statistics; at the end they are as before."""
        with torch.no_grad():
            sample = torch._foreach_clone(self.tensors)
            y = FlatVector(self.tensors, device="cpu")
            self.center.look(y.vector)
        try:
            y.scatter(self.tensors)
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.tensors, sample)

    @torch.no_grad()
    def read_center(self) -> list[Tensor]:
        """Return the center as it is now, as new tensors like the parameters and statistics."""
        y = FlatVector(self.tensors, device="cpu")
        self.center.look(y.vector)
        found = [torch.empty_like(t) for t in self.tensors]
        y.scatter(found)
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the sample, the center that it is coupled to, and the momentum; nothing may be in flight."""
        sample = FlatVector(self.tensors, dtype=self._center.dtype)
        return {
            "sample": sample.gather(self.tensors),
            "anchor": self._center.clone(),
            "anchor_version": self._center_version,
            "velocity": None if self._velocity is None else self._velocity.clone(),
            "guard": self.guard.state_dict(),
        }

    def checked(self, state: dict[str, Any] | None) -> dict[str, Any]:
        """Return a state, or raise InputError if it is not of such a chain."""
        size = self._center.numel()
        if state is None or state["sample"].numel() != size or (state["velocity"] is None) != (self._velocity is None):
            found = "none" if state is None else f"one of {state['sample'].numel()}, or another center_momentum"
            raise InputError(f"state_dict: expected the state of a chain of {size} elements, found {found}")
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned, into the parameters and statistics too."""
        sample = FlatVector(self.tensors, dtype=self._center.dtype)
        sample.vector.copy_(state["sample"])
        sample.scatter(self.tensors)
        self._center.copy_(state["anchor"])
        if self._anchor is not None:
            self._anchor.vector.copy_(self._center)
        self._center_version = state["anchor_version"]
        if self._velocity is not None:
            self._velocity.copy_(state["velocity"])
        self.guard.load_state_dict(state["guard"])

    @torch.no_grad()
    def _move(self, slot: Slot, pull: float, step: int) -> Exchange:
        """Move the center by what the coupling says, and leave what moves the chain in the slot."""
        slot.sample.land()
        x, y = slot.sample.host, self._center
        with self.center.turn():
            began, clock = time.time(), time.perf_counter()
            self.center.meet(x, pull)
            if self.coupling == "elastic":
                self._center_version = self.center.read(y)
            version_read = version_added = self._center_version
            gap = torch.sub(x, y, out=x if self._gap is None else self._gap)
            distance = float(torch.linalg.vector_norm(gap[: self._size]))
            length = math.hypot(distance, float(torch.linalg.vector_norm(gap[self._size :])))
            # A center at 0 has no measure of its own: elements of about 1 are taken for usual.
            reference = float(torch.linalg.vector_norm(y)) or math.sqrt(len(y)) if self.guard.needs_reference else 0.0
            accepted = self.guard.accepts(pull * length, reference)
            delta = gap.mul_(pull)
            if accepted:
                added = delta if self._velocity is None else self._velocity.mul_(self.center_momentum).add_(delta)
                version_added = self.center.add(added)
                self._share(slot)
            shown = time.perf_counter()
            self._show(slot, step, version_read)
            shown = time.perf_counter() - shown
            if self.coupling != "elastic" or not accepted:
                self._center_version = self.center.read(y)
            seconds = time.perf_counter() - clock - shown
        if not accepted or self.coupling == "kernel" or (self.coupling == "restart" and self._inline):
            x.copy_(y)
        elif self.coupling == "restart":
            torch.sub(y, x, out=x)
        elif x is not delta:
            x.copy_(delta)
        slot.sample.send()
        passes = 2 if accepted or self.coupling == "elastic" else 1
        return Exchange(
            step=step,
            began=began,
            seconds=seconds,
            version_read=version_read,
            version_added=version_added,
            center_distance=distance,
            delta_norm=distance * pull,
            bytes=self.center.nbytes * passes,
            accepted=accepted,
        )

    def _share(self, slot: Slot) -> None:
        """Publish this chain's state, if others read such; the perturbed one only if there was a slot to take it."""
        if not self.center.shares:
            return
        if slot.perturbed is None:
            self.center.share(slot.sample.host)
        elif slot.perturbed.taken:
            self.center.share(slot.perturbed.landed())

    def _show(self, slot: Slot, step: int, version: int) -> None:
        """Show the witness the sample, the center that the delta was taken against, and the last ascent's e."""
        if self._witness is None:
            return
        states = {"sample": slot.sample.host[: self._size], "center": self._center[: self._size]}
        if slot.perturbation is not None and slot.perturbation.taken:
            states["perturbation"] = slot.perturbation.landed()
        self._witness.see(step, version, states)

    @torch.no_grad()
    def show(self, step: int) -> None:
        """Show the witness the sample and the center as they are now; nothing may be in flight.

        Args:
            step: local steps done.
        """
        if self._witness is None:
            return
        sample, y = FlatVector(self.tensors, device="cpu"), torch.empty_like(self._center)
        version = self.center.version
        self.center.look(y)
        states = {"sample": sample.gather(self.tensors)[: self._size], "center": y[: self._size]}
        self._witness.see(step, version, states)

    @torch.no_grad()
    def _apply(self, slot: Slot, record: Exchange) -> None:
        """Move the chain by the result of an exchange."""
        views = slot.sample.views()
        params = views[: len(self.params)]
        if not record.accepted:
            torch._foreach_copy_(self.tensors, views)
            for flight in self._flying:
                flight.void = True  # it was taken from the chain that is no more
        elif self.coupling == "elastic":
            torch._foreach_sub_(self.params, params)
        elif self.coupling == "restart":
            # What the chain has done since the staging stays.
            (torch._foreach_copy_ if self._inline else torch._foreach_add_)(self.params, params)
        if self._anchor is not None:
            torch._foreach_copy_(self._anchor.views, views)
