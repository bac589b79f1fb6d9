"""The loss of a script's step: the scalars on which `backward` was called."""

from __future__ import annotations

import functools
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler


class Losses:
    """The sum of the losses of all backward passes since the last `take`."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        _instances.add(self)
        _patch_torch()

    def add(self, loss: Tensor) -> None:
        """Add a scalar."""
        self._sum = loss if self._sum is None else self._sum + loss.to(self._sum)

    def take(self) -> Tensor | None:
        """Return the sum, a scalar tensor, or None without a backward pass; reset it."""
        loss, self._sum = self._sum, None
        return loss


_instances: weakref.WeakSet[Losses] = weakref.WeakSet()
_unscaled: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}  # the original of each loss scaled by GradScaler


@functools.cache
def _patch_torch() -> None:
    """Wrap `Tensor.backward` and `GradScaler.scale` so that they report losses."""
    backward, scale = Tensor.backward, GradScaler.scale

    @functools.wraps(backward)
    def reporting_backward(self: Tensor, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        # Looked up before the pass, which may free the unscaled loss.
        loss = _unscaled.pop(id(self), (None, self))[1] if self.numel() == 1 else None
        backward(self, *args, **kwargs)  # type: ignore[no-untyped-call]
        if loss is not None:
            for losses in list(_instances):
                losses.add(loss.detach().reshape(()).float())

    @functools.wraps(scale)
    def recording_scale(self: GradScaler, outputs: Any) -> Any:  # noqa: ANN401
        scaled = scale(self, outputs)
        if isinstance(outputs, Tensor) and scaled is not outputs:
            key = id(scaled)
            _unscaled[key] = weakref.ref(scaled, lambda _: _unscaled.pop(key, None)), outputs.detach()
        return scaled

    torch.Tensor.backward = reporting_backward  # type: ignore[method-assign]
    GradScaler.scale = recording_scale  # type: ignore[method-assign]
