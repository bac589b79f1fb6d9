"""Refuses a delta that would spoil the center."""

from __future__ import annotations

import math
import statistics
from collections import deque

from lsam_hpc.errors import InputError

WINDOW = 64  # lengths that the median runs over
FEW = 8  # with fewer lengths than these the center's own norm is let through, too
PATIENCE = 32  # refusals in a row after which the chain's steps have really become longer


class Guard:
    """Tells a chain's usual deltas from ones that are not finite, or far too long.

    A delta is refused if its norm is more than `max_jump` times the median of the last 64 that were accepted. After 32
    finite refusals in a row that median becomes `max_jump` times as long: so a chain whose steps really became longer
    is let in, while bad numbers are not as long as good ones come in between, even if most are bad. Before there are 8
    lengths, a delta may also be as long as the center's norm.

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
        self._in_a_row = 0  # refusals of finite lengths since the last that was accepted

    @property
    def needs_reference(self) -> bool:
        """Whether `accepts` still looks at the center's norm."""
        return len(self._lengths) < FEW and math.isfinite(self.max_jump)

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
        limit = self.max_jump * statistics.median(self._lengths) if self._lengths else 0.0
        if self.needs_reference:
            limit = max(limit, reference)
        if limit == 0 or length <= limit:
            self._lengths.append(length)
            self._in_a_row = 0
            return True
        self._in_a_row += 1
        if self._in_a_row == PATIENCE:
            self._lengths = deque([limit] * FEW, maxlen=WINDOW)
            self._in_a_row = 0
        return False

    def state_dict(self) -> list[float]:
        """Return the lengths that the median runs over."""
        return list(self._lengths)

    def load_state_dict(self, lengths: list[float]) -> None:
        """Load what `state_dict` returned."""
        self._lengths = deque(lengths, maxlen=WINDOW)
