"""Which rank holds which elements of a sharded vector, and how messages divide a shard."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """A vector of `size` elements in contiguous shards over `ranks` ranks, whose lengths differ by at most one.

    Args:
        size: number of elements.
        ranks: number of ranks.
        chunk: maximum number of elements in a message.
    """

    size: int
    ranks: int
    chunk: int

    def bounds(self, rank: int) -> tuple[int, int]:
        """Return the half-open range (low, high) of the elements in a rank's shard."""
        return self.size * rank // self.ranks, self.size * (rank + 1) // self.ranks

    def chunks(self, rank: int) -> Iterator[tuple[int, int, int]]:
        """Yield (first, end, displacement in the shard, in elements) for each message to or from a rank."""
        low, high = self.bounds(rank)
        for first in range(low, high, self.chunk):
            yield first, min(first + self.chunk, high), first - low

    def order(self, rank: int) -> Iterator[int]:
        """Yield all ranks, starting with `rank`, so that ranks which start together access different shards."""
        for step in range(self.ranks):
            yield (rank + step) % self.ranks
