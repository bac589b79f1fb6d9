"""Mini-batches whose order can be saved and gone on with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Batches:
    """Mini-batches for ever, each pass over the whole training set in an order of its own.

    Args:
        x: shape (N, ...).
        y: shape (N,).
        size: of a mini-batch; what is left of a pass is dropped. At most N.
        seed: of the orders.
    """

    def __init__(self, x: Tensor, y: Tensor, size: int, seed: int) -> None:
        self._x, self._y, self._size = x, y, min(size, len(y))
        self._generator = torch.Generator().manual_seed(seed)
        self._begin_pass()

    def __next__(self) -> tuple[Tensor, Tensor]:
        if self._at + self._size > len(self._y):
            self._begin_pass()
        chosen = self._order[self._at : self._at + self._size]
        self._at += self._size
        return self._x[chosen], self._y[chosen]

    def state_dict(self) -> dict[str, Any]:
        """Return where in which order the next mini-batch is."""
        return {"generator": self._before, "at": self._at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called."""
        self._generator.set_state(state["generator"])
        self._begin_pass()
        self._at = state["at"]

    def _begin_pass(self) -> None:
        self._before = self._generator.get_state()
        self._order = torch.randperm(len(self._y), generator=self._generator).to(self._y.device)
        self._at = 0
