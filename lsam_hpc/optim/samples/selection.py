"""The interface between a step and its selection of samples."""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from lsam_hpc.errors import InputError

Losses: TypeAlias = Callable[[Tensor | None], Tensor]


class Chosen(NamedTuple):
    """The m samples of a pass.

    Args:
        samples: indices into the mini-batch, int64, shape (m,).
        factors: factors of the samples' weights, shape (m,).
    """

    samples: Tensor
    factors: Tensor


class Selection:
    """Selects `max(1, round(fraction * n))` of the n samples of a mini-batch, for both passes or for the second one.

    Args:
        fraction: share of the samples, > 0 and <= 1. With 1 the step is a SAM step.

    Raises:
        InputError: the fraction is out of range.
    """

    def __init__(self, fraction: float) -> None:
        self.fraction = check_fraction("fraction", fraction)

    def choose_first(self, ids: Tensor | None) -> Chosen | None:
        """Return the samples of both passes; None, as here, if the first pass is over all samples.

        Args:
            ids: dataset indices of the samples, shape (n,), or None.
        """
        return None

    def choose_second(self, before: Tensor, losses: Losses, ids: Tensor | None) -> Chosen | None:
        """Return the samples of the second pass; None, as here, for all; called with the parameters at x + e.

        It is not called if `choose_first` returned samples.

        Args:
            before: losses at x, shape (n,), detached.
            losses: computes losses at x + e.
            ids: dataset indices of the samples, shape (n,), or None.
        """
        return None

    def learn(self, ids: Tensor | None, samples: Tensor, change: Tensor) -> None:
        """Record `change` = l(x + e) - l(x) of the samples in both passes; not called if the first pass overflowed.

        Args:
            ids: dataset indices of the mini-batch, shape (n,), or None.
            samples: indices into the mini-batch, shape (m,).
            change: shape (m,), detached.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return the state to save for an exact resume."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""

    def number_selected(self, n: int) -> int:
        """Return how many of n samples are selected."""
        return max(1, round(self.fraction * n))


def check_fraction(name: str, value: float) -> float:
    """Return the value as a float.

    Raises:
        InputError: it is not a number > 0 and <= 1.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value <= 1:
        raise InputError(f"{name}: expected a number > 0 and <= 1, found {value!r}")
    return float(value)


def check_losses(losses: Tensor, length: int | None = None) -> Tensor:
    """Return the losses.

    Raises:
        InputError: they are not `length` losses (None: one or more) in a 1-D tensor.
    """
    if losses.ndim != 1 or not len(losses) or length not in (None, len(losses)):
        expected = "one loss per sample" if length is None else f"{length} losses"
        raise InputError(f"losses: expected {expected} in a 1-D tensor, found shape {tuple(losses.shape)}")
    return losses
