"""Mini-batches whose order can be saved and resumed."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from lsam_hpc.train.augment import Augment
from lsam_hpc.train.dataset import Inputs, Labels

BLOCK = 2**18  # elements of inputs that are read at once: several small mini-batches, which is faster, in 1 MiB
_AUGMENT_STREAM = 1 << 31  # XORed into the seed for the augmentation's own random stream; torch seeds have 32 bits


class Batches:
    """An endless stream of mini-batches; each pass over the training set has a new random order.

    `ids` are the indices of the last mini-batch in the training set, shape (size,).

    Args:
        x: N images or windows of text, or a tensor of shape (N, ...).
        y: labels of shape (N,), of text (N, context).
        size: of a mini-batch, at most N; an incomplete mini-batch at the end of a pass is dropped.
        seed: of the orders and of the augmentation.
        augment: augments each mini-batch. Default: none.
        channels_last: return images, shape (size, C, H, W), with the channels last in memory. Default False.
    """

    def __init__(
        self,
        x: Inputs | Tensor,
        y: Labels,
        size: int,
        seed: int,
        augment: Augment | None = None,
        *,
        channels_last: bool = False,
    ) -> None:
        self._x, self._y, self._size, self._augment = x, y, min(size, len(y)), augment
        self._channels_last = channels_last
        self._per_block = max(1, BLOCK // (self._size * x.shape[1:].numel()))  # mini-batches
        self._read: deque[tuple[Tensor, Tensor, Tensor]] = deque()  # mini-batches that were read, and their indices
        self._generator = torch.Generator().manual_seed(seed)
        self._augment_generator = torch.Generator().manual_seed(seed ^ _AUGMENT_STREAM)
        self.ids = torch.empty(0, dtype=torch.int64)
        self._begin_pass()

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        if not self._read:
            self._read_block()
        x, y, self.ids = self._read.popleft()
        self._at += self._size
        if self._augment is not None:
            x = self._augment(x, self._augment_generator)
        if self._channels_last:
            x = x.to(memory_format=torch.channels_last)
        return x, y

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the next mini-batch and the random states."""
        return {"generator": self._before, "at": self._at, "changes": self._augment_generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from where `state_dict` was called."""
        self._generator.set_state(state["generator"])
        self._begin_pass()
        self._at = state["at"]
        self._augment_generator.set_state(state["changes"])

    def _read_block(self) -> None:
        if self._at + self._size > len(self._y):
            self._begin_pass()
        count = min(self._per_block, (len(self._y) - self._at) // self._size)
        chosen = self._order[self._at : self._at + count * self._size]
        # unsafe: unlike views, the parts may be changed in place by a model, each without an effect on the others.
        x, y, ids = (torch.unsafe_split(t, self._size) for t in (self._x[chosen], self._y[chosen], chosen))
        self._read.extend(zip(x, y, ids, strict=True))

    def _begin_pass(self) -> None:
        self._before = self._generator.get_state()
        self._order = torch.randperm(len(self._y), generator=self._generator).to(self._y.device)
        self._at = 0
        self._read.clear()
