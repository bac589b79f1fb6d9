"""An exchange on its way, and the vectors that travel with it."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass

from torch import Tensor

from lsam_hpc.optim.record import Exchange
from lsam_hpc.optim.staging import Staging


@dataclass
class Aside:
    """A state of the ascent before an exchange, to go out with it."""

    staging: Staging
    taken: bool = False

    def take(self, tensors: list[Tensor]) -> None:
        """Stage the state."""
        self.staging.take(tensors)
        self.taken = True

    def landed(self) -> Tensor:
        """Return the state, in host memory."""
        self.staging.land()
        return self.staging.host


@dataclass
class Slot:
    """The vectors of one exchange: the sample, which becomes what moves the chain, and states of its ascent."""

    sample: Staging
    perturbed: Aside | None  # x + e, to be published
    perturbation: Aside | None  # e, for the witness


@dataclass
class Flight:
    """An exchange that was handed over and whose result the chain does not hold yet."""

    slot: Slot
    future: Future[Exchange]
    step: int
    blocked: float
    void: bool = False  # the chain was reset since: the result moves it no more
