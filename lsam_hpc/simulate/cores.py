"""Threads that share the cores of a node in turns, by the rules of Linux's scheduler."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

from lsam_hpc.simulate.fluid import Fluid

# A thread keeps a core for at least a slice. Then the next tick of the clock, or a thread that wakes, preempts it if
# another one waits. Seconds, defaults of Linux 6.18; the slice (kernel/sched/fair.c) grows with the cores, up to eight.
SLICE, TICK = 0.7e-3, 4e-3
TURNS = 20  # per step where only training threads compete, so that long steps are fast to simulate


@dataclass(eq=False)
class Core:
    """A core, the thread that runs on it, and the threads that wait for it."""

    thread: Thread | None = None
    since: float = 0.0
    watched: bool = False  # whether the end of this thread's slice is scheduled
    waiting: deque[Thread] = field(default_factory=deque)


class Cores:
    """The cores of a node, each with a queue of its own.

    A thread that wakes takes an idle core, or queues for the core that its waker, or else it, used last; a new thread
    joins the shortest queue. A core without a queue takes a thread from the longest one. A thread whose slice is over
    moves to the shortest queue if that balances them.

    Args:
        env: the simulation.
        count: number of cores.
        work: core seconds of a step, which set the length of a turn. Default 0: as short as Linux's.
    """

    def __init__(self, env: simpy.Environment, count: int, work: float = 0.0) -> None:
        self._env = env
        self._turn = max(TICK, work / TURNS)
        self._slice = SLICE * (1 + int(math.log2(min(count, 8))))
        self._cores = [Core() for _ in range(count)]
        self._place: dict[Thread, Core] = {}  # where a thread runs or waits

    def ask(self, thread: Thread) -> None:
        """Start a thread that wakes, now or when a core is free; do nothing if it runs or waits already."""
        if thread in self._place:
            return
        last = (thread.waker or thread).home
        core = min(self._cores, key=lambda core: (core.thread is not None, core is not last, len(core.waiting)))
        self._place[thread] = core
        core.waiting.append(thread)
        core.watched &= thread.waker is None  # turns are short while an exchange thread waits
        if core.thread is not None and self._env.now - core.since >= self._slice:
            self._preempt(core)
        self._start(core)

    def leave(self, thread: Thread) -> None:
        """Free the core of a thread that sleeps, or remove the thread from its queue."""
        core = self._place.pop(thread, None)
        if core is None:
            return
        if core.thread is thread:
            core.thread = None
            self._start(core)
        else:
            core.waiting.remove(thread)

    def _start(self, core: Core) -> None:
        if core.thread is None:
            queue = (core if core.waiting else max(self._cores, key=lambda other: len(other.waiting))).waiting
            if not queue:
                return
            thread = core.thread = queue.popleft()
            core.since, core.watched = self._env.now, False
            thread.home = self._place[thread] = core
            thread.start()
        if core.waiting and not core.watched:
            self._watch(core)

    def _watch(self, core: Core) -> None:
        core.watched = True
        thread, since = core.thread, core.since

        def at_tick(_: simpy.Event) -> None:
            if core.thread is thread and core.since == since:
                core.watched = False
                if core.waiting:
                    self._preempt(core)
                    self._start(core)

        length = TICK if any(t.waker for t in (thread, *core.waiting) if t) else self._turn
        tick = length * math.ceil(max(self._env.now, since + self._slice) / length)
        self._env.timeout(max(0.0, tick - self._env.now)).callbacks.append(at_tick)

    def _preempt(self, core: Core) -> None:
        thread, core.thread = core.thread, None
        assert thread is not None
        # Linux balances its queues every few ticks.
        least = min(self._cores, key=lambda other: len(other.waiting))
        if len(least.waiting) + 1 >= len(core.waiting):
            least = core
        least.waiting.append(thread)
        self._place[thread] = least
        thread.stop()
        least.watched &= thread.waker is None
        if not least.watched and least is not core:
            self._watch(least)


class Thread:
    """A thread, which works while it has a core.

    Args:
        env: the simulation.
        fluid: the work.
        node: its node.
        cores: of its node. None: at least as many cores as threads.
        waker: the thread that wakes this one. Default: none, it wakes by itself.
    """

    def __init__(
        self, env: simpy.Environment, fluid: Fluid, node: int, cores: Cores | None, waker: Thread | None = None
    ) -> None:
        self._env, self._fluid, self._node, self._cores = env, fluid, node, cores
        self._started, self._stopped = env.event(), env.event()
        self.waker = waker
        self.home: Core | None = None  # the core that it used last

    def start(self) -> None:
        """Continue the work on a core."""
        self._stopped = self._env.event()
        self._started.succeed()

    def stop(self) -> None:
        """Interrupt the work until the next `start`."""
        self._started = self._env.event()
        self._stopped.succeed()

    def work(self, kind: int, seconds: float) -> Generator[simpy.Event, Any, None]:
        """Do a piece of work; work that follows without a `sleep` stays in the same slice.

        Args:
            kind: kind of work.
            seconds: its duration if nothing else runs.
        """
        if self._cores is None:
            yield self._fluid.work(self._node, kind, seconds)
            return
        self._cores.ask(self)
        while True:
            yield self._started
            piece = self._fluid.work(self._node, kind, seconds)
            yield piece | self._stopped
            if piece.triggered:
                return
            seconds = self._fluid.halt(self._node, kind, piece)

    def awake(self) -> Generator[simpy.Event, Any, None]:
        """Wait for a core."""
        if self._cores is not None:
            self._cores.ask(self)
            yield self._started

    def sleep(self) -> None:
        """Free the core until the next piece of work."""
        if self._cores is not None:
            if self._started.triggered:
                self._started = self._env.event()
            self._cores.leave(self)
