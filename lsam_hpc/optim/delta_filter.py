"""Rejects a delta that would damage the center."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.options.coupling import DELTA_RATIO

WINDOW = 64  # accepted norms that the median is taken over
MIN_NORMS = 8  # with fewer accepted norms, a delta up to the center's norm is accepted too
MAX_REJECTIONS = 32  # consecutive finite rejections after which the limit is raised

WholeNorms = Callable[[list[float]], list[float]]


class GapNorms(NamedTuple):
    """The norms that decide on an exchange, of the whole chain."""

    parameters: float  # |x - y| of the parameters
    all: float  # |x - y| of the parameters and the statistics
    reference: float  # |y|, or 0 if it is not needed


def gap_norms(gap: Tensor, size: int, y: Tensor | None, whole_norms: WholeNorms | None) -> GapNorms:
    """Return the norms of x - y and of y.

    Args:
        gap: this rank's part of x - y, first the parameters', then the statistics'.
        size: number of the parameters' elements.
        y: this rank's part of the center. None: the filter needs no reference.
        whole_norms: returns the norms of a chain of which each rank holds a part, given those of this rank's parts;
            collective. None: this rank holds the whole chain.
    """
    norms = [float(torch.linalg.vector_norm(part)) for part in (gap[:size], gap[size:])]
    if y is not None:
        norms += [float(torch.linalg.vector_norm(y)), math.sqrt(len(y))]
    parameters, rest, *scales = norms if whole_norms is None else whole_norms(norms)
    # A center at 0 gives no scale: assume elements of size 1.
    return GapNorms(parameters, math.hypot(parameters, rest), next(filter(None, scales), 0.0))


class DeltaFilter:
    """Accepts or rejects each delta of a chain by its norm.

    A delta is rejected if its norm is not finite or exceeds `max_delta_ratio` times the median of the last 64 accepted
    norms. Until 8 norms were accepted, a norm up to the center's is accepted too. After 32 finite rejections in a row
    the median is multiplied by `max_delta_ratio`: a chain whose steps became longer for good is accepted again, while
    isolated bad deltas stay rejected, even if they are the majority, because any accepted delta resets the count.

    Args:
        max_delta_ratio: largest accepted norm, as a multiple of the running median, > 1; `math.inf` rejects only norms
            that are not finite. Default 10.

    Raises:
        InputError: `max_delta_ratio` is not above 1.
    """

    def __init__(self, max_delta_ratio: float = 10.0) -> None:
        if max_delta_ratio not in DELTA_RATIO:
            raise InputError(f"max_delta_ratio: expected {DELTA_RATIO}, found {max_delta_ratio!r}")
        self.max_delta_ratio = float(max_delta_ratio)
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._rejections = 0  # finite norms rejected since the last accepted one

    @property
    def needs_reference(self) -> bool:
        """True if `accepts` uses the center's norm: with fewer than 8 accepted norms."""
        return len(self._norms) < MIN_NORMS and math.isfinite(self.max_delta_ratio)

    def accepts(self, norm: float, reference: float = 0.0) -> bool:
        """Return whether a delta may be added to the center, and record its norm.

        Args:
            norm: Euclidean norm of the delta.
            reference: Euclidean norm of the center; used while `needs_reference`. Default 0.
        """
        if not math.isfinite(norm):
            return False
        if norm == 0:  # not recorded: a chain at its center (a leader) would bring the median to 0
            return True
        limit = self.max_delta_ratio * statistics.median(self._norms) if self._norms else 0.0
        if self.needs_reference:
            limit = max(limit, reference)
        if limit == 0 or norm <= limit:
            self._norms.append(norm)
            self._rejections = 0
            return True
        self._rejections += 1
        if self._rejections == MAX_REJECTIONS:
            self._norms = deque([limit] * MIN_NORMS, maxlen=WINDOW)
            self._rejections = 0
        return False

    def state_dict(self) -> list[float]:
        """Return the norms that the median is taken over."""
        return list(self._norms)

    def load_state_dict(self, norms: list[float]) -> None:
        """Load what `state_dict` returned."""
        self._norms = deque(norms, maxlen=WINDOW)
