"""Centers that are made of what the other chains publish: gossip, and a leader to follow."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from lsam_hpc import rma
from lsam_hpc.exchange import array
from lsam_hpc.optim.guard import Guard
from lsam_hpc.rma.graphs import Graph, neighbours


class _FromPeers:
    """What a center made of published states is to a chain.

    Args:
        peers: where the chains publish their states; each has published its start.
        silent: returns the ranks that give no sign of life, which are left out.
    """

    shares = True

    def __init__(self, peers: rma.Peers, silent: Callable[[], Collection[int]]) -> None:
        self._peers = peers
        self._silent = silent
        self.version = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._peers.size

    @property
    def nbytes(self) -> int:
        """Bytes that reading one state moves."""
        return self._peers.state_bytes

    def turn(self) -> AbstractContextManager[None]:
        """Return a context that does nothing: chains take their exchanges when they come."""
        return nullcontext()

    def share(self, state: Tensor) -> None:
        """Publish a state of this chain, shape (P,), for others to read."""
        self._peers.publish(array(state))


class GossipCenter(_FromPeers):
    """A chain's own estimate of the center, moved by its own deltas and by the states that its peers publish.

    At an exchange the estimate takes in k peers: y += pull * (x_j - y) for each whose state is new; then the chain's
    own delta, pull * (x - y), as with a shared center. With all peers read at once this is the shared center's rule.

    Args:
        peers: where the chains publish their states.
        silent: returns the ranks that give no sign of life, which are left out.
        start: y at the start, shape (P,); copied.
        graph: which peers: `"random"`, `"ring"` or `"exponential"`.
        degree: k, how many.
        max_jump: a peer's state whose pull on y is longer than this many medians is left out, and one not finite.
        seed: of the random graph.

    Source: ring and exponential graphs as in Assran et al. 2019, "Stochastic Gradient Push" (arXiv 1811.10792).
    """

    def __init__(
        self,
        peers: rma.Peers,
        silent: Callable[[], Collection[int]],
        start: Tensor,
        graph: Graph,
        degree: int,
        max_jump: float,
        seed: int,
    ) -> None:
        super().__init__(peers, silent)
        self._y = start.detach().clone()
        self._state = torch.empty_like(self._y)
        self._graph, self._degree, self._seed = graph, degree, seed
        self._guards = [Guard(max_jump) for _ in range(peers.comm.size)]
        self._seen = np.zeros(peers.comm.size, np.int64)
        self._meetings = 0

    @property
    def nbytes(self) -> int:
        """Bytes that an exchange moves: k states."""
        return self._degree * self._peers.state_bytes

    def meet(self, sample: Tensor, pull: float) -> None:
        """Take in the states of this exchange's peers."""
        comm = self._peers.comm
        chosen = neighbours(self._graph, comm.rank, comm.size, self._meetings, self._degree, self._seed)
        self._meetings += 1
        silent = self._silent()
        for rank in chosen:
            if rank in silent:
                continue
            count = self._peers.read(rank, array(self._state))
            if count == self._seen[rank]:
                continue
            self._seen[rank] = count
            gap = self._state.sub_(self._y)
            guard = self._guards[rank]
            reference = float(torch.linalg.vector_norm(self._y)) if guard.needs_reference else 0.0
            if guard.accepts(pull * float(torch.linalg.vector_norm(gap)), reference):
                self._y.add_(gap, alpha=pull)
                self.version += 1

    def read(self, out: Tensor) -> int:
        """Copy the estimate into `out`, shape (P,), and return the number of states and deltas in it."""
        out.copy_(self._y)
        return self.version

    def look(self, out: Tensor) -> None:
        """Copy the estimate into `out`, shape (P,)."""
        out.copy_(self._y)

    def add(self, delta: Tensor) -> int:
        """Add this chain's delta, shape (P,), and return the version before."""
        self._y.add_(delta)
        self.version += 1
        return self.version - 1

    def set(self, y: Tensor, version: int) -> None:
        """Make the estimate and its version what is given."""
        self._y.copy_(y)
        self.version = version


class LeaderCenter(_FromPeers):
    """The state of the chain with the lowest smoothed loss: the others are pulled towards it, it is pulled by none.

    Args:
        peers: where the chains publish their states and losses.
        silent: returns the ranks that give no sign of life, which cannot lead.

    Source: Teng et al. 2019, "Leader Stochastic Gradient Descent" (arXiv 1905.10395), eq. 4, with one group.
    """

    def __init__(self, peers: rma.Peers, silent: Callable[[], Collection[int]]) -> None:
        super().__init__(peers, silent)
        self._sample: Tensor | None = None

    @property
    def leader(self) -> int:
        """The rank that leads now; the lowest one before there is a loss."""
        losses = np.nan_to_num(self._peers.records()["loss"], nan=np.inf)
        silent = self._silent()
        return min((float(loss), rank) for rank, loss in enumerate(losses) if rank not in silent)[1]

    def meet(self, sample: Tensor, pull: float) -> None:
        """Keep the sample at hand: a chain that leads is at its center."""
        self._sample = sample

    def read(self, out: Tensor) -> int:
        """Copy the leader's state into `out`, shape (P,), and return how many states it has published."""
        leader = self.leader
        sample = self._sample
        # A leader whose sample has overflown goes back to what it published last.
        if leader == self._peers.comm.rank and sample is not None and bool(torch.isfinite(sample).all()):
            out.copy_(sample)
        else:
            self.version = self._peers.read(leader, array(out))
        return self.version

    def look(self, out: Tensor) -> None:
        """Copy what the leader has published into `out`, shape (P,)."""
        self._peers.read(self.leader, array(out))

    def add(self, delta: Tensor) -> int:
        """Do nothing: a chain moves only itself."""
        return self.version
