"""Mini-batches whose order can be saved and gone on with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lsam_hpc.train.augment import Augment
from lsam_hpc.train.dataset import Images

_CHANGES = 1 << 31  # makes another seed of one; torch's generator takes 32 bits


class Batches:
    """Mini-batches for ever, each pass over the whole training set in an order of its own.

    Args:
        x: N images, or a tensor of shape (N, ...).
        y: shape (N,).
        size: of a mini-batch; what is left of a pass is dropped. At most N.
        seed: of the orders and of the augmentation.
        augment: changes the images of each mini-batch. Default: none.
    """

    def __init__(self, x: Images | Tensor, y: Tensor, size: int, seed: int, augment: Augment | None = None) -> None:
        self._x, self._y, self._size, self._augment = x, y, min(size, len(y)), augment
        self._generator = torch.Generator().manual_seed(seed)
        self._changes = torch.Generator().manual_seed(seed ^ _CHANGES)
        self._begin_pass()

    def __next__(self) -> tuple[Tensor, Tensor]:
        if self._at + self._size > len(self._y):
            self._begin_pass()
        chosen = self._order[self._at : self._at + self._size]
        self._at += self._size
        x = self._x[chosen]
        return x if self._augment is None else self._augment(x, self._changes), self._y[chosen]

    def state_dict(self) -> dict[str, Any]:
        """Return where in which order the next mini-batch is."""
        return {"generator": self._before, "at": self._at, "changes": self._changes.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was called."""
        self._generator.set_state(state["generator"])
        self._begin_pass()
        self._at = state["at"]
        self._changes.set_state(state["changes"])

    def _begin_pass(self) -> None:
        self._before = self._generator.get_state()
        self._order = torch.randperm(len(self._y), generator=self._generator).to(self._y.device)
        self._at = 0
