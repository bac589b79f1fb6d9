"""Centers computed from the states that the chains publish: gossip, and following a leader."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from lsam_hpc import rma
from lsam_hpc.distributed.exchange import array
from lsam_hpc.optim.delta_filter import DeltaFilter
from lsam_hpc.rma.graphs import Graph, neighbours


class _FromPeers:
    """The common part of centers that are computed from published states.

    Args:
        peers: table of the chains' published states; each chain has published its start.
        unresponsive: returns the ranks without a recent heartbeat, which are left out.
    """

    publishes = True

    def __init__(self, peers: rma.PeerTable, unresponsive: Callable[[], Collection[int]]) -> None:
        self._peers = peers
        self._unresponsive = unresponsive
        self.version = 0

    def meet(self, peers: rma.PeerTable) -> None:
        """Continue with another table, whose ranks are those that are left."""
        self._peers = peers

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._peers.states.size

    @property
    def nbytes(self) -> int:
        """Bytes that reading one state moves."""
        return self._peers.states.bytes

    def exclusive_turn(self) -> AbstractContextManager[None]:
        """Return a context that does nothing: exchanges of different chains need no order."""
        return nullcontext()

    def publish(self, state: Tensor) -> None:
        """Publish a state of this chain, shape (P,), for others to read."""
        self._peers.states.publish(array(state))


class GossipCenter(_FromPeers):
    """A chain's own estimate of the center, moved by its own deltas and by its peers' published states.

    At an exchange each of k peers with a new state moves the estimate, y += pull * (x_j - y); then the chain's own
    delta, pull * (x - y), is added as with a shared center. With all peers this is the shared center's rule.

    Args:
        peers: table of the chains' published states; each chain has published its start.
        unresponsive: returns the ranks without a recent heartbeat, which are left out.
        start: initial y, shape (P,); copied.
        graph: which peers to read: `"random"`, `"ring"` or `"exponential"`.
        degree: number of peers to read at an exchange, k.
        max_delta_ratio: largest accepted norm of a peer's delta, as a multiple of the running median. A larger one is
            left out, as is one that is not finite.
        seed: seed of the random graph.

    Source: ring and exponential graphs as in Assran et al. 2019, "Stochastic Gradient Push" (arXiv 1811.10792).
    """

    def __init__(
        self,
        peers: rma.PeerTable,
        unresponsive: Callable[[], Collection[int]],
        start: Tensor,
        graph: Graph,
        degree: int,
        *,
        max_delta_ratio: float,
        seed: int,
    ) -> None:
        super().__init__(peers, unresponsive)
        self._y = start.detach().clone()
        self._state = torch.empty_like(self._y)
        self._graph, self._degree, self._seed = graph, degree, seed
        self._max_delta_ratio = max_delta_ratio
        self._exchanges = 0
        self.meet(peers)

    def meet(self, peers: rma.PeerTable) -> None:
        """Continue with another table, whose ranks are those that are left."""
        super().meet(peers)
        self._filters = [DeltaFilter(self._max_delta_ratio) for _ in range(peers.comm.size)]
        self._seen = np.zeros(peers.comm.size, np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes that an exchange moves: k states."""
        return self._degree * self._peers.states.bytes

    def begin_exchange(self, sample: Tensor, pull: float) -> None:
        """Move the estimate towards the new states of this exchange's peers."""
        comm = self._peers.comm
        chosen = neighbours(self._graph, comm.rank, comm.size, self._exchanges, self._degree, seed=self._seed)
        self._exchanges += 1
        unresponsive = self._unresponsive()
        for rank in chosen:
            if rank in unresponsive:
                continue
            count = self._peers.states.read(rank, array(self._state))
            if count == self._seen[rank]:
                continue
            self._seen[rank] = count
            gap = self._state.sub_(self._y)
            delta_filter = self._filters[rank]
            reference = float(torch.linalg.vector_norm(self._y)) if delta_filter.needs_reference else 0.0
            if delta_filter.accepts(pull * float(torch.linalg.vector_norm(gap)), reference):
                self._y.add_(gap, alpha=pull)
                self.version += 1

    def read(self, out: Tensor) -> int:
        """Copy the estimate into `out`, shape (P,), and return the number of states and deltas added to it."""
        out.copy_(self._y)
        return self.version

    def peek(self, out: Tensor) -> None:
        """Copy the estimate into `out`, shape (P,)."""
        out.copy_(self._y)

    def add(self, delta: Tensor) -> int:
        """Add this chain's delta, shape (P,), and return the version before it."""
        self._y.add_(delta)
        self.version += 1
        return self.version - 1

    def set(self, y: Tensor, version: int) -> None:
        """Replace the estimate and its version."""
        self._y.copy_(y)
        self.version = version


class LeaderCenter(_FromPeers):
    """The published state of the chain with the lowest smoothed loss, the leader: all other chains are pulled to it.

    Args:
        peers: table of the chains' published states and losses; each chain has published its start.
        unresponsive: returns the ranks without a recent heartbeat, which cannot lead.

    Source: Teng et al. 2019, "Leader Stochastic Gradient Descent" (arXiv 1905.10395), eq. 4, with one group.
    """

    def __init__(self, peers: rma.PeerTable, unresponsive: Callable[[], Collection[int]]) -> None:
        super().__init__(peers, unresponsive)
        self._sample: Tensor | None = None

    @property
    def leader(self) -> int:
        """The current leader; the lowest responsive rank if no loss is known."""
        losses = np.nan_to_num(self._peers.records()["loss"], nan=np.inf)
        unresponsive = self._unresponsive()
        return min((float(loss), rank) for rank, loss in enumerate(losses) if rank not in unresponsive)[1]

    def begin_exchange(self, sample: Tensor, pull: float) -> None:
        """Keep the sample: it is the center if this chain leads."""
        self._sample = sample

    def read(self, out: Tensor) -> int:
        """Copy the leader's state into `out`, shape (P,), and return the number of states that it has published."""
        leader = self.leader
        sample = self._sample
        # A leader whose sample has overflowed returns to the state that it published last.
        if leader == self._peers.comm.rank and sample is not None and bool(torch.isfinite(sample).all()):
            out.copy_(sample)
        else:
            self.version = self._peers.states.read(leader, array(out))
        return self.version

    def peek(self, out: Tensor) -> None:
        """Copy the leader's published state into `out`, shape (P,)."""
        self._peers.states.read(self.leader, array(out))

    def add(self, delta: Tensor) -> int:
        """Do nothing: no chain moves the leader."""
        return self.version
