"""The interface of step counters, and the counter of a single chain."""

from __future__ import annotations

from typing import Protocol


class StepCounter(Protocol):
    """Assigns each step of a chain its global step: its number among the steps of all chains."""

    def claim(self, local_step: int, since_exchange: int) -> int | None:
        """Return the global step of a chain's next step; None if all chains stop.

        Args:
            local_step: steps that the chain has taken.
            since_exchange: of these, steps since its last exchange.
        """

    def taken(self, local_step: int, global_step: int) -> None:
        """Report that a chain has taken a step; both numbers include it."""

    def limit(self, total: int) -> int:
        """Return the global step at which a budget of `total` steps ends."""


class LocalSteps:
    """The counter of a single chain: its global steps are its local steps."""

    def claim(self, local_step: int, since_exchange: int) -> int | None:
        """Return the local step."""
        return local_step

    def taken(self, local_step: int, global_step: int) -> None:
        """Do nothing."""

    def limit(self, total: int) -> int:
        """Return the budget."""
        return total
