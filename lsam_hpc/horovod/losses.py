"""The loss of a script's step: what `backward` was called on, which is all that is seen of it."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler


class Losses:
    """The sum of the losses of the backward passes since it was taken last."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        _watched.add(self)
        _watch()

    def add(self, loss: Tensor) -> None:
        """Add a scalar."""
        self._sum = loss if self._sum is None else self._sum + loss.to(self._sum)

    def take(self) -> Tensor | None:
        """Return the sum, a scalar tensor, or None if no backward pass was seen."""
        found, self._sum = self._sum, None
        return found


_watched: weakref.WeakSet[Losses] = weakref.WeakSet()
_true: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}  # of a scaled loss, the one before


@functools.cache
def _watch() -> None:
    """Look at every `Tensor.backward` and `GradScaler.scale` from now on."""
    backward, scale = Tensor.backward, GradScaler.scale

    @functools.wraps(backward)
    def watched(self: Tensor, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        # Looked up before the pass, which may free what it came from.
        loss = _true.pop(id(self), (None, self))[1] if self.numel() == 1 else None
        backward(self, *args, **kwargs)  # type: ignore[no-untyped-call]
        if loss is not None:
            for losses in list(_watched):
                losses.add(loss.detach().reshape(()).float())

    @functools.wraps(scale)
    def remembered(self: GradScaler, outputs: Any) -> Any:  # noqa: ANN401
        scaled = scale(self, outputs)
        if isinstance(outputs, Tensor) and scaled is not outputs:
            key = id(scaled)
            _true[key] = weakref.ref(scaled, lambda _: _true.pop(key, None)), outputs.detach()
        return scaled

    torch.Tensor.backward = watched  # type: ignore[method-assign]
    GradScaler.scale = remembered  # type: ignore[method-assign]
