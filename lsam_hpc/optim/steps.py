"""Who counts the steps of all chains."""

from __future__ import annotations

from typing import Protocol


class StepCounter(Protocol):
    """Gives each step of a chain its number among the steps of all chains."""

    def claim(self, local_step: int, since_exchange: int) -> int | None:
        """Return the global step of a chain's next step; None if all chains stop.

        Args:
            local_step: steps that the chain has taken.
            since_exchange: of these, steps since its last exchange.
        """

    def taken(self, local_step: int, global_step: int) -> None:
        """Note that a chain has taken a step; both numbers count it."""

    def limit(self, total: int) -> int:
        """Return the global step at which a budget of `total` steps ends."""


class LocalSteps:
    """The counter of a chain that is alone: its own steps."""

    def claim(self, local_step: int, since_exchange: int) -> int | None:
        """Return the number of the chain's own steps."""
        return local_step

    def taken(self, local_step: int, global_step: int) -> None:
        """Do nothing: nobody else asks."""

    def limit(self, total: int) -> int:
        """Return the budget."""
        return total
