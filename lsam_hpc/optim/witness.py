"""Who is shown the states of a chain and its center as they meet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor


class Witness(Protocol):
    """Sees the states of exchanges: logs them, for instance."""

    def wants(self, state: str, step: int) -> bool:
        """Return whether it will look at a state of an exchange.

        Args:
            state: `"sample"`, `"center"` or `"perturbation"`.
            step: local steps done when the sample is staged.
        """

    def see(self, step: int, version: int, states: Mapping[str, Tensor]) -> None:
        """Look at the states of an exchange, in the thread that does it; they are overwritten afterwards.

        Args:
            step: local steps done when the sample was staged.
            version: of the center that the delta is taken against.
            states: flat vectors in host memory, shape (P,): sample, center, and the perturbation if it was wanted.
        """
