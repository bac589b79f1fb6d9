"""The interface of callbacks that receive the states of each exchange."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class StateCallback(Protocol):
    """Receives the states of a chain's exchanges, for example to log them."""

    def wants(self, state: str, step: int) -> bool:
        """Return True if `on_states` needs this state for the exchange at this step.

        Args:
            state: `"sample"`, `"center"` or `"perturbation"`.
            step: local steps done when the sample of the exchange is staged.
        """

    def on_states(self, step: int, version: int, states: Mapping[str, Tensor]) -> None:
        """Read the states of an exchange, in the thread that runs it; they are overwritten after the call.

        Args:
            step: local steps done when the sample was staged.
            version: version of the center that the delta is computed against.
            states: flat vectors in host memory, shape (P,), by name: sample, center, perturbation if it was wanted.
        """
