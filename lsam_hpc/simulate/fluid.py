"""Work that shares cores, memory and network cards: every piece goes on at the rate that its resources leave it."""

from __future__ import annotations

import heapq
import itertools
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray

Array = NDArray[np.float64]
LATE = 2  # SimPy's priority for what is to happen after all else at the same moment
ROUNDS = 2  # of giving away what was left over
NEAR = 1e-12  # relative: as good as done


class Fluid:
    """Pieces of work of a few kinds on nodes, by processor sharing.

    A piece takes its `work` in seconds if it is alone. It uses resources of its own node, and spread over the other
    nodes, by their `weights`. A resource that is asked for more than it has slows all its users by the same factor, and
    a piece goes at the rate of its slowest resource; the far end's factor is the mean over the nodes that it spreads
    over. What is left over then is given to those who can use it, in two rounds. So one bottleneck is shared exactly as
    processor sharing says, and several are shared max-min fairly up to what two rounds leave.

    All pieces of a kind on a node go at the same rate, so the state is a clock for each (node, kind), and a change
    costs a few operations on arrays of nodes x kinds, however many pieces there are.

    Args:
        env: the simulation.
        own: what a piece uses of its own node's resources while it goes at full rate, shape (nodes, kinds, resources).
        far: what it uses of all other nodes' together, if their weights add up to 1; same shape.
        weights: of the nodes, shape (nodes,); their sum is 1.
        capacity: of each resource of a node, shape (resources,).
        core: of the far uses of all pieces together, shape (resources,): what the network carries at once.
    """

    def __init__(
        self, env: simpy.Environment, own: Array, far: Array, weights: Array, capacity: Array, core: Array
    ) -> None:
        self._env = env
        self._own, self._far = own, far
        self._weights, self._capacity, self._core = weights, capacity, core
        nodes, kinds, _ = own.shape
        self._kinds = kinds
        self._uses, self._reaches = own > 0, far > 0
        self.done = np.zeros((nodes, kinds), np.int64)
        self._count = np.zeros((nodes, kinds))
        self._rate = np.ones((nodes, kinds))
        self._clock = np.zeros((nodes, kinds))  # work that a piece which was there all the time would have done
        self._first = np.full((nodes, kinds), np.inf)  # of the clock: when the next piece is done
        self._pieces: list[list[tuple[float, int, simpy.Event]]] = [[] for _ in range(nodes * kinds)]
        self._order = itertools.count()
        self._at = 0.0
        self._dirty = False
        self._timer: simpy.Event | None = None

    def work(self, node: int, kind: int, seconds: float) -> simpy.Event:
        """Begin a piece of work, and return the event of its end.

        Args:
            node: where.
            kind: index of the kinds of `own`.
            seconds: that it takes alone.
        """
        event = self._env.event()
        if seconds <= 0:
            self.done[node, kind] += 1
            return event.succeed()
        self._advance()
        pieces = self._pieces[node * self._kinds + kind]
        heapq.heappush(pieces, (self._clock[node, kind] + seconds, next(self._order), event))
        self._first[node, kind] = pieces[0][0]
        self._count[node, kind] += 1
        self._changed()
        return event

    def _advance(self) -> None:
        now = self._env.now
        if now > self._at:
            self._clock += self._rate * (now - self._at)
            self._at = now

    def _changed(self) -> None:
        if not self._dirty:
            self._dirty = True
            event = self._env.event()
            event._ok = True
            event.callbacks.append(self._share)
            self._env.schedule(event, LATE)

    def _share(self, _: Any) -> None:  # noqa: ANN401
        """Set all rates anew and the timer to the next end."""
        self._dirty = False
        self._rate = self._rates()
        with np.errstate(invalid="ignore"):
            left = ((self._first - self._clock) / self._rate).min()
        if not np.isfinite(left):
            self._timer = None
            return
        timer = self._env.event()
        timer._ok = True
        timer.callbacks.append(self._end)
        self._timer = timer
        self._env.schedule(timer, 1, max(0.0, float(left)))

    def _end(self, timer: simpy.Event) -> None:
        if timer is not self._timer:  # rates have changed since
            return
        self._timer = None
        self._advance()
        due = self._first <= self._clock + NEAR * np.maximum(1.0, self._clock)
        if not due.any():  # rounding: the one that this was for
            gap = (self._first - self._clock) / self._rate
            due = gap == gap.min()
        for node, kind in zip(*np.nonzero(due), strict=True):
            pieces, clock = self._pieces[node * self._kinds + kind], max(self._clock[node, kind], self._first[node, kind])
            while pieces and pieces[0][0] <= clock + NEAR * max(1.0, clock):
                heapq.heappop(pieces)[2].succeed()
                self._count[node, kind] -= 1
                self.done[node, kind] += 1
            self._first[node, kind] = pieces[0][0] if pieces else np.inf
        self._changed()

    def _rates(self) -> Array:
        rate = np.ones_like(self._rate)
        load, core = self._load(self._count)
        if (load <= self._capacity).all() and (core <= self._core).all():
            return rate
        rate = rate / self._strain(load, core).clip(1.0)
        for _ in range(ROUNDS):
            strain = self._strain(*self._load(self._count * rate))
            rate = np.minimum(1.0, rate / np.maximum(strain, NEAR))
        return rate

    def _load(self, active: Array) -> tuple[Array, Array]:
        """Return what is asked of each node's resources, and of the network."""
        out = np.einsum("nk,nkc->nc", active, self._far)
        total = out.sum(0)
        load: Array = np.einsum("nk,nkc->nc", active, self._own) + self._weights[:, None] * (total - out)
        return load, total

    def _strain(self, load: Array, core: Array) -> Array:
        """Return, for each node and kind, by how much its worst resource is asked for more than it has."""
        node = load / self._capacity
        far = np.maximum(self._weights @ np.maximum(node, NEAR), core / self._core)
        own: Array = np.where(self._uses, node[:, None, :], 0.0).max(2)
        return np.maximum(own, np.where(self._reaches, far, 0.0).max(2))
