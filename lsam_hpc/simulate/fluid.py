"""Pieces of work that share cores, memory and network cards by processor sharing."""

from __future__ import annotations

import heapq
import itertools
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import NORMAL, EventPriority

Array = NDArray[np.float64]
LATE = EventPriority(2)  # SimPy priority of callbacks that run after all others of the same moment
ROUNDS = 2  # in which unused capacity is redistributed
NEAR = 1e-12  # relative: a piece this close to its end is done
ROOM = 1 + 1e-9  # a load this far above capacity still fits: sums are rounded
FRESH = 10_000  # changes after which the sums are computed anew


class Fluid:
    """Pieces of work of a few kinds on nodes, by processor sharing.

    A piece takes its `work` in seconds if it is alone. It uses resources of its own node, and of the other nodes in
    proportion to their `weights`. A resource with more load than capacity slows all its users by the same factor, and a
    piece runs at the rate of its slowest resource; the far end's factor is the mean over the other nodes. Unused
    capacity is then redistributed to the pieces that can use it, in two rounds. So one bottleneck is shared exactly as
    in processor sharing, and several are shared max-min fairly except for what two rounds leave unused.

    All pieces of a kind on a node run at the same rate, so the state is a clock for each (node, kind), and a change
    costs a few operations on arrays of nodes x kinds, however many pieces there are.

    Args:
        env: the simulation.
        own: use of its own node's resources by a piece at full rate, shape (nodes, kinds, resources).
        far: use of all other nodes' resources together, if their weights sum to 1; same shape.
        weights: of the nodes, shape (nodes,); their sum is 1.
        capacity: of each resource of a node, shape (resources,).
        core: limit of the far use of all pieces together, shape (resources,): the capacity of the network's core.
    """

    def __init__(
        self, env: simpy.Environment, own: Array, far: Array, *, weights: Array, capacity: Array, core: Array
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
        self._clock = np.zeros((nodes, kinds))  # work done by a piece that runs since the start
        self._first = np.full((nodes, kinds), np.inf)  # clock value at which the next piece ends
        self._pieces: list[list[tuple[float, int, simpy.Event]]] = [[] for _ in range(nodes * kinds)]
        self._order = itertools.count()
        self._at = 0.0
        # At full rate: use of each node by its own pieces, their use of other nodes, and the sum of the latter.
        self._asked, self._sent = np.zeros(own.shape[::2]), np.zeros(own.shape[::2])
        self._total = np.zeros(own.shape[2])
        self._changes = 0
        self._free = True  # all pieces run at full rate
        self._dirty = False
        self._timer: simpy.Event | None = None

    def work(self, node: int, kind: int, seconds: float) -> simpy.Event:
        """Start a piece of work, and return the event of its end.

        Args:
            node: its node.
            kind: its kind, an index into `own`.
            seconds: its duration if it is alone.
        """
        event = self._env.event()
        if seconds <= 0:
            self.done[node, kind] += 1
            return event.succeed()
        self._advance()
        pieces = self._pieces[node * self._kinds + kind]
        heapq.heappush(pieces, (self._clock[node, kind] + seconds, next(self._order), event))
        self._first[node, kind] = pieces[0][0]
        self._add(node, kind, 1)
        self._changed()
        return event

    def halt(self, node: int, kind: int, event: simpy.Event) -> float:
        """Remove a piece of work, and return its remaining seconds.

        Args:
            node: as in `work`.
            kind: as in `work`.
            event: the event that `work` returned; it will not trigger.
        """
        self._advance()
        pieces = self._pieces[node * self._kinds + kind]
        place = next(i for i, piece in enumerate(pieces) if piece[2] is event)
        ends, _, _ = pieces.pop(place)
        heapq.heapify(pieces)
        self._first[node, kind] = pieces[0][0] if pieces else np.inf
        self._add(node, kind, -1)
        self._changed()
        return max(0.0, float(ends - self._clock[node, kind]))

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
        """Update all rates, and set the timer to the next end of a piece."""
        self._dirty = False
        if self._fits():
            if not self._free:
                self._rate.fill(1.0)
            self._free = True
            remaining = (self._first - self._clock).min()
        else:
            self._rate, self._free = self._rates(), False
            remaining = ((self._first - self._clock) / self._rate).min()
        if not np.isfinite(remaining):
            self._timer = None
            return
        timer = self._env.event()
        timer._ok = True
        timer.callbacks.append(self._end)
        self._timer = timer
        self._env.schedule(timer, NORMAL, max(0.0, float(remaining)))

    def _end(self, timer: simpy.Event) -> None:
        if timer is not self._timer:  # rates have changed since
            return
        self._timer = None
        self._advance()
        gap = ((self._first - self._clock) if self._free else (self._first - self._clock) / self._rate).ravel()
        # The nearest end is due, even if rounding makes it late, and so is every end within the tolerance.
        for index in np.flatnonzero(gap <= max(float(gap.min()), 0.0) + NEAR * max(1.0, self._at)):
            node, kind = divmod(int(index), self._kinds)
            pieces = self._pieces[index]
            clock = max(self._clock[node, kind], self._first[node, kind])
            while pieces and pieces[0][0] <= clock + NEAR * max(1.0, clock):
                heapq.heappop(pieces)[2].succeed()
                self._add(node, kind, -1)
                self.done[node, kind] += 1
            self._first[node, kind] = pieces[0][0] if pieces else np.inf
        self._changed()

    def _add(self, node: int, kind: int, pieces: int) -> None:
        self._count[node, kind] += pieces
        self._asked[node] += pieces * self._own[node, kind]
        far = pieces * self._far[node, kind]
        self._sent[node] += far
        self._total += far
        self._changes += 1

    def _fits(self) -> bool:
        """Return whether all pieces can run at full rate."""
        if self._changes > FRESH:  # rounding errors have accumulated
            self._changes = 0
            self._asked = np.einsum("nk,nkc->nc", self._count, self._own)
            self._sent = np.einsum("nk,nkc->nc", self._count, self._far)
            self._total = self._sent.sum(0)
        load = self._asked + self._weights[:, None] * (self._total - self._sent)
        return bool((load <= self._capacity * ROOM).all() and (self._total <= self._core * ROOM).all())

    def _rates(self) -> Array:
        rate: Array = 1.0 / self._strain(self._count).clip(1.0)
        for _ in range(ROUNDS):
            rate = np.minimum(1.0, rate / np.maximum(self._strain(self._count * rate), NEAR))
        return rate

    def _strain(self, active: Array) -> Array:
        """Return, for each node and kind, the load of its most loaded resource relative to the capacity.

        Args:
            active: pieces of each kind on each node, times their rates.
        """
        out = np.einsum("nk,nkc->nc", active, self._far)
        total = out.sum(0)
        near = np.einsum("nk,nkc->nc", active, self._own)
        node = (near + self._weights[:, None] * (total - out)) / self._capacity
        far = np.maximum(self._weights @ np.maximum(node, NEAR), total / self._core)
        local: Array = np.where(self._uses, node[:, None, :], 0.0).max(2)
        both: Array = np.maximum(local, np.where(self._reaches, far, 0.0).max(2))
        return both
