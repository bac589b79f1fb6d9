"""Refuses a delta that would spoil the center."""

from __future__ import annotations

import math
import statistics
from collections import deque

from lsam_hpc.errors import InputError

WINDOW = 64  # lengths that the median runs over
FEW = 8  # with fewer lengths than these the center's own norm is the measure


class Guard:
    """Tells a chain's usual deltas from ones that are not finite, or far too long.

    A delta is refused if its norm is more than `max_jump` times the median of the last 64. A refused length counts in
    the median as `max_jump` medians, so that a chain whose steps really became longer is let in after some refusals,
    while stray numbers of 1e30 are not. Before there are 8 lengths, the measure is the center's norm if that is more.

    Args:
        max_jump: how many medians a delta may be long; `math.inf` refuses only what is not finite. Default 10.

    Raises:
        InputError: `max_jump` is not above 1.
    """

    def __init__(self, max_jump: float = 10.0) -> None:
        if isinstance(max_jump, bool) or not isinstance(max_jump, (int, float)) or not max_jump > 1:
            raise InputError(f"max_jump: expected a number > 1, found {max_jump!r}")
        self.max_jump = float(max_jump)
        self._lengths: deque[float] = deque(maxlen=WINDOW)

    @property
    def needs_reference(self) -> bool:
        """Whether `accepts` still looks at the center's norm."""
        return len(self._lengths) < FEW

    def accepts(self, length: float, reference: float = 0.0) -> bool:
        """Return whether a delta may be added, and remember its length.

        Args:
            length: norm of the delta.
            reference: norm of the center; used while `needs_reference`.
        """
        if not math.isfinite(length):
            return False
        if length == 0:  # says nothing of how long others are: a leader is at its center
            return True
        usual = statistics.median(self._lengths) if self._lengths else 0.0
        if self.needs_reference:
            usual = max(usual, reference)
        limit = self.max_jump * usual if usual > 0 else math.inf
        self._lengths.append(min(length, limit))
        return length <= limit

    def state_dict(self) -> list[float]:
        """Return the lengths that the median runs over."""
        return list(self._lengths)

    def load_state_dict(self, lengths: list[float]) -> None:
        """Load what `state_dict` returned."""
        self._lengths = deque(lengths, maxlen=WINDOW)
