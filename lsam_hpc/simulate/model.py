"""The job as SimPy processes: a training thread and an exchange thread for each chain."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, Literal

import simpy

from lsam_hpc.simulate import costs as cost
from lsam_hpc.simulate.cores import Cores, Thread
from lsam_hpc.simulate.costs import Costs
from lsam_hpc.simulate.describe import Job, Machine, check
from lsam_hpc.simulate.fluid import Fluid
from lsam_hpc.simulate.lengths import lengths

Process = Generator[simpy.Event, Any, None]
Kind = Literal["together", "step", "stage", "read", "add", "apply"]


@dataclass(frozen=True)
class Event:
    """An event of a rank; with groups, `rank` is the number of the chain.

    * `"together"`: a step that all ranks take together ends; they average their gradients. `rank` is 0.
    * `"step"`: a local step ends; `step` counts it. The chain takes in the results that have arrived. If an exchange is
      due, the `"stage"` follows.
    * `"stage"`: the sample is copied for an exchange. In this and the later events of the exchange, `step` is the
      number of local steps done at the staging. Results that arrived since the `"step"` (a chain with `max_delay`
      exchanges in flight waits for one) are taken in before the sample is staged.
    * `"read"`: the exchange's read of the center takes effect (elastic only; kernel and restart read after `"add"`).
    * `"add"`: the exchange's delta is in the center.
    * `"apply"`: the result has arrived; the training thread takes it in at the rank's next `"step"` or `"stage"`.
    """

    time: float  # seconds since the start
    rank: int
    kind: Kind
    step: int


@dataclass
class InFlightExchange:
    """An exchange that was staged and is not applied yet."""

    step: int  # local steps done when it was staged
    done: simpy.Event
    held: float  # seconds for which it has held up the training thread so far


@dataclass
class Chain:
    """State and statistics of a chain."""

    index: int
    ranks: range
    node: int
    threads: list[Thread]  # training threads, one per rank
    exchangers: list[Thread]  # of the leader; of each rank that exchanges a shard
    steps: int = 0
    ended: float = 0.0  # time of its last step
    held: float = 0.0  # seconds for which exchanges held up the training thread, waits included
    waited: float = 0.0  # part of `held` spent waiting for exchanges to end
    marks: list[tuple[float, int]] = field(default_factory=list)  # (time, steps) after each staging
    staleness: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of exchanges
    delays: list[int] = field(default_factory=list)
    version: int = 0  # of the center at the last read


class Model:
    """The simulation of a job on a machine.

    Args:
        job: the job to simulate.
        machine: the machine that it runs on.
        seed: seed of the random step lengths.
        listen: called with every event. Default: none.
        began: the time to begin at, in seconds. Default 0.
        taken: number of steps that the ranks took before. Default 0.

    Raises:
        InputError: a number is out of its range.
    """

    def __init__(
        self,
        job: Job,
        machine: Machine,
        seed: int = 0,
        listen: Callable[[Event], None] | None = None,
        *,
        began: float = 0.0,
        taken: int = 0,
    ) -> None:
        check(job, machine)
        self.job, self.machine = job, machine
        self.costs = Costs(job, machine)
        self.env = simpy.Environment(began)
        c = self.costs
        self.fluid = Fluid(self.env, c.own, c.far, weights=c.weights, capacity=c.capacity, core=c.core)
        self.version = self.begun = 0  # adds that have ended, and adds that have begun
        self.steps = taken  # of all ranks
        self._grouped = job.group_size > 1 and not job.fully_shard  # a leader exchanges for all ranks of a chain
        self._half = job.wire_dtype != "float32"
        self._group_seconds = [c.group_seconds(passes) for passes in (1, 2)]
        self._listen = listen
        self._limit: int | None = None
        self._reached = self.env.event()
        # Each rank has a training and an exchange thread; they take turns on a node with fewer cores than threads.
        count = math.ceil(machine.cores)
        few = 2 * min(job.ranks, machine.ranks_per_node) > count
        cores = [Cores(self.env, count, job.work) if few else None for _ in range(c.nodes)]

        def thread(rank: int, waker: Thread | None = None) -> Thread:
            return Thread(self.env, self.fluid, c.node(rank), cores[c.node(rank)], waker)

        size = job.group_size
        self.chains: list[Chain] = []
        for index in range(job.chains):
            ranks = range(index * size, (index + 1) * size)
            threads = [thread(rank) for rank in ranks]
            exchangers = [thread(rank, waker=threads[i]) for i, rank in enumerate(ranks[: job.part])]
            chain = Chain(index, ranks, c.node(ranks[0]), threads, exchangers)
            self.chains.append(chain)
            jobs = simpy.Store(self.env)
            self.env.process(self._train(chain, jobs, seed))
            if job.period:
                self.env.process(self._exchange(chain, jobs))

    def run(self, seconds: float, steps: int | None = None, show: Callable[[float], object] | None = None) -> None:
        """Simulate until a time in seconds, or until all ranks together have taken `steps` steps.

        `show` is called a hundred times with the part that is done, from 0 to 1.
        """
        self._limit = steps
        if show is not None:
            expected = min(seconds, math.inf if steps is None else steps * self.job.step / self.job.ranks)
            self.env.process(self._watch(expected, show))
        until = self.env.timeout(seconds) if seconds != float("inf") else None
        self.env.run(self._reached if until is None else self.env.any_of([self._reached, until]))

    def _watch(self, seconds: float, show: Callable[[float], object]) -> Process:
        while True:
            yield self.env.timeout(seconds / 100)
            show(min(1.0, self.env.now / seconds))

    def _emit(self, chain: Chain, kind: Kind, step: int) -> None:
        if self._listen is not None:
            self._listen(Event(self.env.now, chain.index, kind, step))

    def _train(self, chain: Chain, jobs: simpy.Store, seed: int) -> Process:
        job = self.job
        in_flight: deque[InFlightExchange] = deque()
        since = 0
        for idle, work, pauses in lengths(job, chain.ranks, seed):
            passes = 1 if self.steps < job.single else 2
            yield from self._step(chain, passes / 2 * idle + pauses[:passes].sum(0), passes / 2 * work, passes)
            chain.steps += 1
            chain.ended = self.env.now
            self.steps += job.group_size
            since += 1
            self._emit(chain, "step", chain.steps)
            if self._limit is not None and self.steps >= self._limit and not self._reached.triggered:
                self._reached.succeed()
            # The ranks of a group take a result in only at their next exchange.
            while job.group_size == 1 and in_flight and in_flight[0].done.triggered:
                yield from self._apply(chain, in_flight.popleft())
            if not job.period or since < job.period:
                continue
            since = 0
            while len(in_flight) >= job.max_delay:
                began = self.env.now
                chain.threads[0].sleep()
                yield in_flight[0].done
                chain.waited += self.env.now - began
                in_flight[0].held += self.env.now - began
                yield from self._apply(chain, in_flight.popleft())
            began = self.env.now
            yield from self._hold(chain)
            flight = InFlightExchange(chain.steps, self.env.event(), self.env.now - began)
            self._emit(chain, "stage", chain.steps)
            chain.marks.append((self.env.now, chain.steps))
            in_flight.append(flight)
            jobs.put(flight)

    def _step(self, chain: Chain, idle: Any, work: Any, passes: int) -> Process:  # noqa: ANN401
        exchanged = self._group_seconds[passes - 1]
        if not work.any():
            chain.threads[0].sleep()
            yield self.env.timeout(float(idle.max()) + exchanged)
        elif len(idle) == 1:
            yield from self._member(chain.threads[0], float(idle[0]), float(work[0]))
        else:
            members = zip(chain.threads, idle, work, strict=True)
            yield self.env.all_of([self.env.process(self._member(t, float(i), float(w))) for t, i, w in members])
            yield self.env.timeout(exchanged)

    def _member(self, thread: Thread, idle: float, work: float) -> Process:
        if idle > 0:
            thread.sleep()
            yield self.env.timeout(idle)
        yield from thread.work(cost.WORK, work)
        if self.job.group_size > 1:
            thread.sleep()

    def _hold(self, chain: Chain) -> Process:
        """Stage or apply; each is half of the time that an exchange holds up the training thread."""
        threads = chain.threads[: self.job.part]
        if not self.machine.host_link:
            yield from self._do(chain, cost.HOLD, threads)
            return
        for thread in threads:
            thread.sleep()
        yield self.env.timeout(float(self.costs.seconds[chain.node, cost.HOLD]))

    def _apply(self, chain: Chain, flight: InFlightExchange) -> Process:
        began = self.env.now
        chain.delays.append(chain.steps - flight.step)
        yield from self._hold(chain)
        chain.held += flight.held + self.env.now - began

    def _do(self, chain: Chain, kind: int, threads: list[Thread] | None = None) -> Process:
        """Do a piece of work on threads of the first ranks, by default on the exchange threads, and wait for all."""
        threads = chain.exchangers if threads is None else threads
        works = [
            thread.work(kind, float(self.costs.seconds[self.costs.node(rank), kind]))
            for rank, thread in zip(chain.ranks, threads, strict=False)
        ]
        if len(works) == 1:
            yield from works[0]
            return
        yield self.env.all_of([self.env.process(self._alone(w, t)) for w, t in zip(works, threads, strict=True)])

    def _alone(self, work: Process, thread: Thread) -> Process:
        """Work, and free the core while other threads of the chain still work."""
        yield from work
        thread.sleep()

    def _exchange(self, chain: Chain, jobs: simpy.Store) -> Process:
        """Run the exchange thread, which does one exchange after the other."""
        elastic, linked = self.job.coupling == "elastic", self.machine.host_link > 0
        while True:
            if not jobs.items:
                chain.exchangers[0].sleep()
            flight: InFlightExchange = yield jobs.get()
            if len(chain.exchangers) == 1:
                yield from chain.exchangers[0].awake()
            if linked:
                yield from self._do(chain, cost.LINK)
            began = self.env.now
            if self._grouped:
                yield from self._do(chain, cost.PASS_ON)
            if elastic:
                yield from self._read(chain, flight, emit=True)
            yield from self._do(chain, cost.COMPUTE)
            yield from self._add(chain, flight)
            if not elastic:
                yield from self._read(chain, flight, emit=False)
            chain.seconds.append(self.env.now - began)
            if linked:
                yield from self._do(chain, cost.LINK)
            flight.done.succeed()
            self._emit(chain, "apply", flight.step)

    def _read(self, chain: Chain, flight: InFlightExchange, *, emit: bool) -> Process:
        chain.version = self.version
        if emit:
            self._emit(chain, "read", flight.step)
        yield from self._do(chain, cost.READ)
        if self._grouped:
            yield from self._do(chain, cost.PASS_ON)

    def _add(self, chain: Chain, flight: InFlightExchange) -> Process:
        before = self.begun
        self.begun += 1
        yield from self._do(chain, cost.ADD)
        if not self._half:
            before = self.version
        self.version += 1
        # Without a shared center, no other chain changes what a chain reads and adds to.
        chain.staleness.append(before - chain.version if self.job.topology == "center" else 0)
        self._emit(chain, "add", flight.step)
