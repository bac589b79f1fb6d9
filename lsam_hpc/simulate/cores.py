"""Threads that take turns on the cores of a node, as Linux has them do."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

import simpy

from lsam_hpc.simulate.fluid import Fluid

# Who has a core keeps it for a slice at least; then the next tick of the clock, or another thread that wakes, takes it
# away if somebody waits. Defaults of Linux 6.18: the slice (kernel/sched/fair.c) grows with the cores, up to eight.
SLICE, TICK = 0.7e-3, 4e-3
TURNS = 20  # in a step, where only threads that train take them: long steps need not take long to simulate


@dataclass(eq=False)
class Core:
    """A core, the thread that has it, and those that wait for it."""

    thread: Thread | None = None
    since: float = 0.0
    watched: bool = False  # the end of this thread's slice will be looked at
    waiting: deque[Thread] = field(default_factory=deque)


class Cores:
    """The cores of a node, each with a queue of its own.

    A thread that wakes takes an idle core, or waits for the one that it, or who woke it, had last; one that is new
    waits where the queue is shortest. A core that is left and has no queue takes from the longest one, and a thread
    whose slice is over goes to the shortest one if that evens them out.

    Args:
        env: the simulation.
        count: of the cores.
        work: seconds of a step that need a core. Default 0: turns are always as short as Linux's.
    """

    def __init__(self, env: simpy.Environment, count: int, work: float = 0.0) -> None:
        self._env = env
        self._turn = max(TICK, work / TURNS)
        self._slice = SLICE * (1 + int(math.log2(min(count, 8))))
        self._cores = [Core() for _ in range(count)]
        self._place: dict[Thread, Core] = {}  # where a thread runs or waits

    def ask(self, thread: Thread) -> None:
        """Have a thread that has woken started, now or later; nothing happens if it has a core or waits for one."""
        if thread in self._place:
            return
        near = (thread.waker or thread).home
        core = min(self._cores, key=lambda core: (core.thread is not None, core is not near, len(core.waiting)))
        self._place[thread] = core
        core.waiting.append(thread)
        core.watched &= thread.waker is None  # short turns from here on
        if core.thread is not None and self._env.now - core.since >= self._slice:
            self._put_off(core)
        self._start(core)

    def leave(self, thread: Thread) -> None:
        """Let others have the core of a thread that sleeps."""
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

        def look(_: simpy.Event) -> None:
            if core.thread is thread and core.since == since:
                core.watched = False
                if core.waiting:
                    self._put_off(core)
                    self._start(core)

        length = TICK if any(t.waker for t in (thread, *core.waiting) if t) else self._turn
        tick = length * math.ceil(max(self._env.now, since + self._slice) / length)
        self._env.timeout(max(0.0, tick - self._env.now)).callbacks.append(look)

    def _put_off(self, core: Core) -> None:
        thread, core.thread = core.thread, None
        assert thread is not None
        # Linux evens out its queues every few ticks.
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
    """A thread, whose work goes on while it has a core.

    Args:
        env: the simulation.
        fluid: the work.
        node: where.
        cores: of the node. None: there is one for every thread.
        waker: the thread that wakes this one. Default: none; it wakes by itself.
    """

    def __init__(
        self, env: simpy.Environment, fluid: Fluid, node: int, cores: Cores | None, waker: Thread | None = None
    ) -> None:
        self._env, self._fluid, self._node, self._cores = env, fluid, node, cores
        self._started, self._stopped = env.event(), env.event()
        self.waker = waker
        self.home: Core | None = None  # that it had last

    def start(self) -> None:
        """Go on with the work: there is a core."""
        self._stopped = self._env.event()
        self._started.succeed()

    def stop(self) -> None:
        """Leave the work where it is until the next `start`."""
        self._started = self._env.event()
        self._stopped.succeed()

    def work(self, kind: int, seconds: float) -> Generator[simpy.Event, Any, None]:
        """Do a piece of work; what follows without a `sleep` goes on with the same slice.

        Args:
            kind: of the work.
            seconds: that it takes alone.
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
        """Wait for a core before anything else is done."""
        if self._cores is not None:
            self._cores.ask(self)
            yield self._started

    def sleep(self) -> None:
        """Leave the core to others until the next piece of work."""
        if self._cores is not None:
            if self._started.triggered:
                self._started = self._env.event()
            self._cores.leave(self)
