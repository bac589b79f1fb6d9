"""Work that shares cores, memory and network cards: every piece goes on at the rate that its resources leave it."""

from __future__ import annotations

import heapq
import itertools
from typing import Any

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import NORMAL, EventPriority

Array = NDArray[np.float64]
LATE = EventPriority(2)  # SimPy's priority for what is to happen after all else at the same moment
ROUNDS = 2  # of giving away what was left over
NEAR = 1e-12  # relative: as good as done
ROOM = 1 + 1e-9  # so much more than all is still all: sums are rounded
FRESH = 10_000  # changes after which they are made anew


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
        self,
        env: simpy.Environment,
        own: Array,
        far: Array,
        weights: Array,
        capacity: Array,
        core: Array,
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
        # At full rate: what is asked of each node by its own pieces, what they ask of others, and its sum.
        self._asked, self._sent = np.zeros(own.shape[::2]), np.zeros(own.shape[::2])
        self._total = np.zeros(own.shape[2])
        self._changes = 0
        self._free = True  # all go at full rate
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
        self._add(node, kind, 1)
        self._changed()
        return event

    def halt(self, node: int, kind: int, event: simpy.Event) -> float:
        """Take a piece of work out again, and return how many of its seconds are left.

        Args:
            node: as it was begun with.
            kind: the same.
            event: of its end, which will not come.
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
        """Set all rates anew and the timer to the next end."""
        self._dirty = False
        if self._room():
            if not self._free:
                self._rate.fill(1.0)
            self._free = True
            left = (self._first - self._clock).min()
        else:
            self._rate, self._free = self._rates(), False
            left = ((self._first - self._clock) / self._rate).min()
        if not np.isfinite(left):
            self._timer = None
            return
        timer = self._env.event()
        timer._ok = True
        timer.callbacks.append(self._end)
        self._timer = timer
        self._env.schedule(timer, NORMAL, max(0.0, float(left)))

    def _end(self, timer: simpy.Event) -> None:
        if timer is not self._timer:  # rates have changed since
            return
        self._timer = None
        self._advance()
        gap = ((self._first - self._clock) if self._free else (self._first - self._clock) / self._rate).ravel()
        # The least is due, whatever rounding has made of it, and what is as near.
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

    def _room(self) -> bool:
        """Return whether all pieces can go at full rate."""
        if self._changes > FRESH:  # sums and differences have gathered rounding errors
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
        """Return, for each node and kind, by how much its worst resource is asked for more than it has for it.

        Args:
            active: pieces of each kind on each node, times their rates.
        """
        out = np.einsum("nk,nkc->nc", active, self._far)
        total = out.sum(0)
        near = np.einsum("nk,nkc->nc", active, self._own)
        node = (near + self._weights[:, None] * (total - out)) / self._capacity
        far = np.maximum(self._weights @ np.maximum(node, NEAR), total / self._core)
        own: Array = np.where(self._uses, node[:, None, :], 0.0).max(2)
        both: Array = np.maximum(own, np.where(self._reaches, far, 0.0).max(2))
        return both
