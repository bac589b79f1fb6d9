"""The interface of a center, and a center in the memory of one process."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from torch import Tensor


class Center(Protocol):
    """The shared variable y: a vector of P elements to which several chains add."""

    @property
    def size(self) -> int:
        """Number of elements, P."""

    @property
    def version(self) -> int:
        """Number of updates added so far."""

    def read(self, out: Tensor) -> int:
        """Copy y into `out`, shape (P,), and return a version: the copy contains at least its updates."""

    def peek(self, out: Tensor) -> None:
        """Copy y into `out`, shape (P,), outside of an exchange."""

    def add(self, delta: Tensor) -> int:
        """Add `delta`, shape (P,), to y and return the version before it."""

    @property
    def nbytes(self) -> int:
        """Bytes that one read or one add moves."""

    def exclusive_turn(self) -> AbstractContextManager[None]:
        """Return the context in which an exchange runs: in lockstep this chain's turn, else without effect."""

    @property
    def publishes(self) -> bool:
        """True if `publish` has an effect."""

    def begin_exchange(self, sample: Tensor, pull: float) -> None:
        """Begin an exchange of `sample`, shape (P,); a center computed from other chains' states reads them here."""

    def publish(self, state: Tensor) -> None:
        """Publish a state of this chain, shape (P,), for other chains; called after its delta was accepted."""


class LocalCenter:
    """A center in this process's memory, for one chain or several chains that take steps in turn.

    Args:
        start: initial y, shape (P,); copied.
    """

    publishes = False

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

    def peek(self, out: Tensor) -> None:
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

    def exclusive_turn(self) -> AbstractContextManager[None]:
        """Return a context without effect: the chains of one process already take turns."""
        return nullcontext()

    def begin_exchange(self, sample: Tensor, pull: float) -> None:
        """Do nothing: this center changes only by `add`."""

    def publish(self, state: Tensor) -> None:
        """Do nothing: no other chain reads published states."""
