"""A chain that steps and exchanges in the order of a simulated run's events."""

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
from lsam_hpc.optim.arguments import Average
from lsam_hpc.optim.center import LocalCenter
from lsam_hpc.options.schedules import CountOrSchedule, evaluate_period

if TYPE_CHECKING:
    from lsam_hpc.simulate.model import Event

T = TypeVar("T")


class OrderedSteps:
    """A `StepCounter` that all chains share: it numbers steps in the order in which they begin.

    Args:
        total: global steps to take.
    """

    def __init__(self, total: int) -> None:
        self.total = total
        self.drawn = 0
        self.together: int | None = None  # the global step of a step that all chains take together

    def claim(self, local_step: int, since_exchange: int) -> int:
        """Return the next global step."""
        self.drawn += 1
        return self.drawn - 1 if self.together is None else self.together

    def taken(self, local_step: int, global_step: int) -> None:
        """Do nothing: the simulated order says what comes next."""

    def limit(self, total: int) -> int:
        """Return the budget."""
        return total

    @property
    def spent(self) -> bool:
        """Whether all global steps are drawn, so that a chain which draws now ends."""
        return self.drawn >= self.total


class DelayedCenter:
    """A center as one chain sees it: a read returns y as it was at the last `capture`.

    Args:
        center: the center that all chains share.
    """

    publishes = False

    def __init__(self, center: LocalCenter) -> None:
        self._center = center
        self._captured: tuple[Tensor, int] | None = None

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

    def capture(self) -> None:
        """Keep the present y for the next `read`."""
        self._captured = self._center.vector.clone(), self._center.version

    def read(self, out: Tensor) -> int:
        """Copy the captured y, or else the present one, into `out`, shape (P,); return its version."""
        if self._captured is None:
            return self._center.read(out)
        (vector, version), self._captured = self._captured, None
        out.copy_(vector)
        return version

    def peek(self, out: Tensor) -> None:
        """Copy the present y into `out`, shape (P,)."""
        self._center.peek(out)

    def add(self, delta: Tensor) -> int:
        """Add `delta`, shape (P,), to y and return the version before it."""
        return self._center.add(delta)

    def exclusive_turn(self) -> AbstractContextManager[None]:
        """Return a context that does nothing: the events set the order."""
        return nullcontext()

    def begin_exchange(self, sample: Tensor, pull: float) -> None:
        """Do nothing: y is local and always available."""

    def publish(self, state: Tensor) -> None:
        """Do nothing: no other chain reads this chain's state."""


class ScriptedExecutor:
    """An executor that runs jobs, and delivers their results, only when its caller says so."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._done: deque[tuple[Future[Any], Any]] = deque()

    @property
    def has_job(self) -> bool:
        """Whether a job is waiting to run."""
        return bool(self._waiting)

    @property
    def has_result(self) -> bool:
        """Whether a result is waiting to be delivered."""
        return bool(self._done)

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Queue a job and return its future."""
        future: Future[T] = Future()
        self._waiting.append((future, job))
        return future

    def wait(self, future: Future[T]) -> bool:
        """Return True: in the order of the events, the result is delivered before it is needed."""
        if not future.done():
            raise InputError("events: expected an apply event before more than max_delay exchanges are in flight")
        return True

    def run_next(self) -> None:
        """Run the job that was submitted first."""
        future, job = self._waiting.popleft()
        self._done.append((future, job()))

    def deliver(self) -> None:
        """Deliver the result of the job that ran first to its future."""
        future, result = self._done.popleft()
        future.set_result(result)


class Chain(lsam.LocalLSAM):
    """The chain of one simulated rank: a `LocalLSAM` whose exchanges and global steps follow the events.

    Args:
        base: the optimizer that takes the step.
        center: the center that all chains share.
        counter: the global steps of all chains.
        period: local steps between exchanges; the events must follow it.
        overlap: whether exchanges run beside steps; else the training thread waits for them. Default True.
        **options: other options of `LocalLSAM`.
    """

    def __init__(
        self,
        base: Optimizer,
        center: LocalCenter,
        counter: OrderedSteps,
        period: CountOrSchedule,
        *,
        overlap: bool = True,
        **options: Any,  # noqa: ANN401
    ) -> None:
        self.counter = counter
        self.view = DelayedCenter(center)
        self.executor = ScriptedExecutor() if overlap else None
        super().__init__(base, self.view, period=period, steps=counter, executor=self.executor, **options)
        self.every = period

    @property
    def exchanges_next(self) -> bool:
        """Whether an exchange follows the next step."""
        return self._since_exchange + 1 >= evaluate_period(self.every, self.global_step)

    def join(self, average: Average) -> None:
        """Average the gradients of the next steps with other chains, and do not exchange."""
        self.average, self.period = average, self.counter.total + 1

    def part(self, y: Tensor, version: int) -> None:
        """Continue alone from the center, as all other chains do.

        Args:
            y: the center, shape (P,).
            version: of the center.
        """
        self._coupler.load_state_dict(
            {**self._coupler.state_dict(), "sample": y, "anchor": y, "anchor_version": version}
        )
        self.average, self.period, self._since_exchange = None, self.every, 0


class Player:
    """Steps a chain through its events.

    Steps that all chains take together are no events of a player: see `Chain.join`.
    A step that an exchange follows is taken when its sample is staged (without overlap: when its delta is added),
    as the chain may wait for an earlier exchange first. A step uses only its chain's state, so the result is the same.

    Args:
        chain: the chain.
        step: takes one step of the chain; its argument is the global step.
    """

    def __init__(self, chain: Chain, step: Callable[[int], object]) -> None:
        self.chain = chain
        self._step = step
        self._steps = chain.steps(chain.counter.total)
        self._global_step: int | None = None
        self._exchanging = False  # whether a step that an exchange follows has ended and is not taken yet
        self._begin()

    @property
    def ended(self) -> bool:
        """Whether the chain takes no further step, and none of its exchanges is in flight."""
        executor = self.chain.executor
        return self._global_step is None and not (executor and (executor.has_job or executor.has_result))

    def take(self, event: Event) -> None:
        """Do what an event says.

        Raises:
            InputError: the event does not follow from the earlier ones.
        """
        executor = self.chain.executor
        match event.kind:
            case "step":
                if self._global_step is None:
                    return
                if self._exchanging:
                    raise InputError(
                        f"events: expected a stage event of rank {event.rank} after its step, found another step"
                    )
                self._exchanging = self.chain.exchanges_next
                if not self._exchanging:
                    self._take_step()
                    self._begin()
            case "stage" if executor is not None:
                if self._accepts(event, due=self._exchanging):
                    self._take_step()
                    self._begin()
            case "read":
                if self.chain.coupling == "elastic":
                    self.chain.view.capture()
            case "add" if executor is not None:
                if self._accepts(event, due=executor.has_job):
                    executor.run_next()
            case "add":
                if self._accepts(event, due=self._exchanging):
                    self._take_step()
            case "apply" if executor is not None:
                if self._accepts(event, due=executor.has_result):
                    executor.deliver()
            case "apply":
                if self._global_step is not None:
                    self._begin()

    def finish(self) -> None:
        """Take in the results that are in flight; no event may follow."""
        for _ in self._steps:  # draws one more global step, and ends
            pass

    def _begin(self) -> None:
        self._global_step = None if self.chain.counter.spent else next(self._steps)

    def _take_step(self) -> None:
        assert self._global_step is not None
        self._exchanging = False
        self._step(self._global_step)

    def _accepts(self, event: Event, *, due: bool) -> bool:
        """Return whether to do an event; events of a chain that has ended are ignored."""
        if not due and self._global_step is not None:
            raise InputError(
                f"events: expected no {event.kind} at step {event.step} of rank {event.rank}, found one; were the "
                f"events simulated with period {self.chain.every}?"
            )
        return due
