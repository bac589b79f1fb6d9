"""An exchange that has not ended yet, and its buffers."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from torch import Tensor

from lsam_hpc.optim.flat import FlatVector
from lsam_hpc.optim.record import Exchange
from lsam_hpc.optim.staging import Staging


@dataclass
class StagedState:
    """A perturbed sample x + e, or a perturbation e, that is staged for the next exchange."""

    staging: Staging
    taken: bool = False  # True once a state is staged

    def take(self, tensors: list[Tensor]) -> None:
        """Stage the state: start to copy it to host memory."""
        self.staging.take(tensors)
        self.taken = True

    def host_vector(self) -> Tensor:
        """Wait for the copy and return the state in host memory."""
        self.staging.land()
        return self.staging.host


@dataclass
class ExchangeBuffers:
    """The buffers of one exchange."""

    sample: Staging  # before the exchange the sample; after it the vector that moves the chain
    perturbed: StagedState | None  # x + e, to be published
    perturbation: StagedState | None  # e, for the state callback
    movement: FlatVector | None  # on the CPU: the center as read by the exchange before, minus as read by this one


class BufferPool:
    """The buffers of the exchanges of a chain.

    Args:
        params: the chain's parameters.
        tensors: what a sample consists of: the parameters, then the statistics.
        max_delay: largest number of exchanges in flight.
        perturbed: True if perturbed samples are staged.
        movement: True if the center's movement is kept.

    Attributes:
        free: buffers of no exchange.
    """

    def __init__(
        self, params: list[Tensor], tensors: list[Tensor], max_delay: int, *, perturbed: bool, movement: bool
    ) -> None:
        self._params, self._tensors, self._max_delay = params, tensors, max_delay
        self._stages_perturbed, self._keeps_movement = perturbed, movement
        self.renew()

    def renew(self) -> None:
        """Make all buffers anew: the thread of an exchange that was given up may still write to its own."""
        self.free = [self._make() for _ in range(self._max_delay)]
        # One more than max_delay: it is filled before the buffers of its exchange are free.
        self._perturbed = self._make().perturbed
        self._perturbation: StagedState | None = None

    @property
    def vector(self) -> Tensor:
        """A sample's vector on the host; for its size and type."""
        return self.free[0].sample.host

    def take_perturbed(self) -> None:
        """Stage the current parameters, at x + e, for the next exchange, if perturbed samples are staged."""
        if self._perturbed is not None:
            self._perturbed.take(self._tensors)

    def take_perturbation(self, offset: list[Tensor]) -> None:
        """Stage e, one tensor per parameter, for the next exchange."""
        if self._perturbation is None:
            self._perturbation = StagedState(Staging(self._params))
        self._perturbation.take(offset)

    def stage(self) -> ExchangeBuffers:
        """Stage the sample; return the buffers with it and with what was staged before."""
        buffers = self.free.pop()
        buffers.sample.take(self._tensors)
        buffers.perturbed, self._perturbed = self._perturbed, buffers.perturbed
        buffers.perturbation, self._perturbation = self._perturbation, buffers.perturbation
        for state in (self._perturbed, self._perturbation):
            if state is not None:
                state.taken = False
        return buffers

    def _make(self) -> ExchangeBuffers:
        return ExchangeBuffers(
            sample=Staging(self._tensors),
            perturbed=StagedState(Staging(self._tensors)) if self._stages_perturbed else None,
            perturbation=None,
            movement=FlatVector(self._params, device="cpu") if self._keeps_movement else None,
        )


@dataclass
class InFlightExchange:
    """A submitted exchange whose result has not been applied to the chain."""

    buffers: ExchangeBuffers
    future: Future[Exchange]
    step: int  # local steps done when the sample was staged
    blocked: float  # seconds that staging and submitting took in the training thread
    discarded: bool = False  # the chain was reset after the staging: do not apply the result
