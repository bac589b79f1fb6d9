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


@dataclass
class InFlightExchange:
    """A submitted exchange whose result has not been applied to the chain."""

    buffers: ExchangeBuffers
    future: Future[Exchange]
    step: int  # local steps done when the sample was staged
    blocked: float  # seconds that staging and submitting took in the training thread
    discarded: bool = False  # the chain was reset after the staging: do not apply the result
