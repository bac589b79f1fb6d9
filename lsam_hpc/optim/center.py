"""What a chain knows of its center, and the center of a single chain."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor


class Center(Protocol):
    """The shared variable y as a chain sees it: a vector of P elements that many add to."""

    @property
    def size(self) -> int:
        """Number of elements, P."""

    @property
    def version(self) -> int:
        """Number of updates added so far."""

    def read(self, out: Tensor) -> int:
        """Copy y into `out`, shape (P,), and return a version that the copy holds at least."""

    def look(self, out: Tensor) -> None:
        """Copy y into `out`, shape (P,), outside an exchange."""

    def add(self, delta: Tensor) -> int:
        """Add `delta`, shape (P,), to y and return the version before it."""

    @property
    def nbytes(self) -> int:
        """Bytes that one read or one add moves."""

    def turn(self) -> AbstractContextManager[None]:
        """Return the context in which an exchange runs: nothing, or this chain's turn in lockstep."""

    @property
    def shares(self) -> bool:
        """Whether `share` does anything."""

    def meet(self, sample: Tensor, pull: float) -> None:
        """Begin an exchange of `sample`, shape (P,): a center made of other chains' states takes these in."""

    def share(self, state: Tensor) -> None:
        """Publish a state of this chain, shape (P,), whose delta was accepted, for others to read."""


class LocalCenter:
    """A center in this process's memory, for one chain or for several that are stepped in turn.

    Args:
        start: y at the start, shape (P,); copied.
    """

    shares = False

    def __init__(self, start: Tensor) -> None:
        self.vector = start.detach().clone()
        self.version = 0

    @property
    def size(self) -> int:
        """Number of elements, P."""
        return self.vector.numel()

    def read(self, out: Tensor) -> int:
        """Copy y into `out`, shape (P,), and return its version."""
        out.copy_(self.vector)
        return self.version

    def look(self, out: Tensor) -> None:
        """Copy y into `out`, shape (P,)."""
        out.copy_(self.vector)

    def add(self, delta: Tensor) -> int:
        """Add `delta`, shape (P,), to y and return the version before it."""
        self.vector.add_(delta)
        self.version += 1
        return self.version - 1

    @property
    def nbytes(self) -> int:
        """Bytes that one read or one add moves."""
        return self.vector.nbytes

    def turn(self) -> AbstractContextManager[None]:
        """Return a context that does nothing: chains in one process take turns by themselves."""
        return nullcontext()

    def meet(self, sample: Tensor, pull: float) -> None:
        """Do nothing: the chains' deltas are all that this center knows of them."""

    def share(self, state: Tensor) -> None:
        """Do nothing: nobody reads a chain's state here."""
