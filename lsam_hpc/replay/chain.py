"""A chain that steps and exchanges when the events of a simulated run say so."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from torch import Tensor
from torch.optim import Optimizer

from lsam_hpc.errors import InputError
from lsam_hpc.optim import lsam
from lsam_hpc.optim.center import LocalCenter

if TYPE_CHECKING:
    from lsam_hpc.simulate.events import Event

T = TypeVar("T")


class Tickets:
    """The total steps of all chains, drawn in the order in which steps begin.

    Args:
        total: steps of all chains together.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.drawn = 0

    def draw(self) -> int:
        """Return the next ticket."""
        self.drawn += 1
        return self.drawn - 1

    @property
    def spent(self) -> bool:
        """Whether a chain that draws now ends."""
        return self.drawn >= self.total


class Delayed:
    """A center as one chain sees it: what it reads is of the moment that `look_now` was called at.

    Args:
        center: that all chains share.
    """

    shares = False

    def __init__(self, center: LocalCenter) -> None:
        self._center = center
        self._seen: tuple[Tensor, int] | None = None

    @property
    def size(self) -> int:
        """Number of elements, P."""
        return self._center.size

    @property
    def version(self) -> int:
        """Number of updates added so far."""
        return self._center.version

    @property
    def nbytes(self) -> int:
        """Bytes that one read or one add moves."""
        return self._center.nbytes

    def look_now(self) -> None:
        """Keep y as it is now for the next `read`."""
        self._seen = self._center.vector.clone(), self._center.version

    def read(self, out: Tensor) -> int:
        """Copy what was kept into `out`, shape (P,), else y as it is now; return its version."""
        if self._seen is None:
            return self._center.read(out)
        (kept, version), self._seen = self._seen, None
        out.copy_(kept)
        return version

    def look(self, out: Tensor) -> None:
        """Copy y as it is now into `out`, shape (P,)."""
        self._center.look(out)

    def add(self, delta: Tensor) -> int:
        """Add `delta`, shape (P,), to y and return the version before it."""
        return self._center.add(delta)

    def turn(self) -> AbstractContextManager[None]:
        """Return a context that does nothing: the events give the turns."""
        return nullcontext()

    def meet(self, sample: Tensor, pull: float) -> None:
        """Do nothing: y is all that a chain meets here."""

    def share(self, state: Tensor) -> None:
        """Do nothing: nobody reads a chain's state here."""


class Told:
    """A runner whose jobs are done, and whose results are handed over, when it is told to."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._done: deque[tuple[Future[Any], Any]] = deque()

    @property
    def to_do(self) -> bool:
        """Whether there is a job that is not done."""
        return bool(self._waiting)

    @property
    def to_hand_over(self) -> bool:
        """Whether there is a result that the chain does not see yet."""
        return bool(self._done)

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Take a job in and return its future."""
        future: Future[T] = Future()
        self._waiting.append((future, job))
        return future

    def wait(self, future: Future[T]) -> bool:
        """Return True: the events come in such an order that the result is there."""
        if not future.done():
            raise InputError("events: expected the apply of an exchange before more than max_delay are on their way")
        return True

    def do(self) -> None:
        """Do the job that was submitted first."""
        future, job = self._waiting.popleft()
        self._done.append((future, job()))

    def hand_over(self) -> None:
        """Let the chain see the result of the job that was done first."""
        future, result = self._done.popleft()
        future.set_result(result)


class Chain(lsam.LSAM):
    """The chain of one simulated rank: `lsam_hpc.optim.LSAM` with a center, a runner and steps from the events.

    Args:
        base: the optimizer that takes the step.
        center: that all chains share.
        tickets: of all chains.
        period: local steps between exchanges.
        overlap: False: exchanges are done in the training thread, which the simulation lets wait. Default True.
        **options: of `lsam_hpc.optim.LSAM`.
    """

    def __init__(
        self,
        base: Optimizer,
        center: LocalCenter,
        tickets: Tickets,
        period: int,
        overlap: bool = True,
        **options: Any,  # noqa: ANN401
    ) -> None:
        self.tickets = tickets
        self.view = Delayed(center)
        self.told = Told() if overlap else None
        super().__init__(base, self.view, period=period, runner=self.told, **options)
        self.every = period

    def _ticket(self) -> int:
        return self.tickets.draw()


class Player:
    """Takes a chain through its events.

    A step that ends with an exchange is taken when its sample is staged, or without overlap when its delta is added:
    what a step computes is the rank's own, and the chain may have waited in between for an earlier exchange.

    Args:
        chain: the chain.
        step: takes one step of the chain with the ticket that it is given.
    """

    def __init__(self, chain: Chain, step: Callable[[int], object]) -> None:
        self.chain = chain
        self._step = step
        self._steps = chain.steps(chain.tickets.total)
        self._ticket: int | None = None
        self._exchanging = False  # a step has ended that an exchange follows, and is not taken yet
        self._begin()

    @property
    def ended(self) -> bool:
        """Whether the chain takes no further step, and none of its exchanges is on its way."""
        told = self.chain.told
        return self._ticket is None and not (told and (told.to_do or told.to_hand_over))

    def take(self, event: Event) -> None:
        """Do what an event says.

        Raises:
            InputError: it does not follow from the events before.
        """
        told = self.chain.told
        match event.kind:
            case "step":
                if self._ticket is None:
                    return
                if self._exchanging:
                    raise InputError(f"events: expected the stage of rank {event.rank}'s step, found another step")
                self._exchanging = (self.chain.local_step + 1) % self.chain.every == 0
                if not self._exchanging:
                    self._take_step()
                    self._begin()
            case "stage" if told is not None:
                if self._follows(event, self._exchanging):
                    self._take_step()
                    self._begin()
            case "read":
                if self.chain.coupling == "elastic":
                    self.chain.view.look_now()
            case "add" if told is not None:
                if self._follows(event, told.to_do):
                    told.do()
            case "add":
                if self._follows(event, self._exchanging):
                    self._take_step()
            case "apply" if told is not None:
                if self._follows(event, told.to_hand_over):
                    told.hand_over()
            case "apply":
                if self._ticket is not None:
                    self._begin()

    def finish(self) -> None:
        """Take in what is on its way; nothing may follow."""
        for _ in self._steps:  # it takes one more ticket and ends
            pass

    def _begin(self) -> None:
        self._ticket = None if self.chain.tickets.spent else next(self._steps)

    def _take_step(self) -> None:
        assert self._ticket is not None
        self._exchanging = False
        self._step(self._ticket)

    def _follows(self, event: Event, expected: bool) -> bool:
        """Return whether to do an event; one of a chain that has ended is passed over."""
        if not expected and self._ticket is not None:
            raise InputError(
                f"events: expected nothing to {event.kind} at step {event.step} of rank {event.rank}, found a "
                f"{event.kind} event; was it simulated with period {self.chain.every}?"
            )
        return expected
