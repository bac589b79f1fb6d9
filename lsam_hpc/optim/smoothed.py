"""A chain's smoothed mini-batch loss, which the chain publishes; reading it never waits for a GPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lsam_hpc.optim.accelerators import KINDS

DECAY = 0.9  # weight of the previous mean in the new one


class SmoothedLoss:
    """Exponential moving average of a chain's mini-batch losses; NaN before the first loss."""

    def __init__(self) -> None:
        self._host = torch.full((), math.nan)
        self._device: Tensor | None = None  # the mean on the GPU; `_host` copies it and may lag by one step

    @property
    def value(self) -> float:
        """The current mean."""
        return self._host.item()

    def set(self, value: float) -> None:
        """Replace the mean."""
        self._host.fill_(value)
        self._device = None

    def add(self, loss: Tensor | float) -> None:
        """Add the loss of one step; a loss that is not finite is ignored."""
        if not (isinstance(loss, Tensor) and loss.device.type in KINDS):
            new, old = loss.detach().item() if isinstance(loss, Tensor) else loss, self.value
            if math.isfinite(new):
                # After a mean that is not finite (none yet, or set by the caller), start from this loss.
                self.set(DECAY * old + (1 - DECAY) * new if math.isfinite(old) else new)
            return
        with torch.no_grad():
            latest = loss.detach().float()
            if self._device is None:
                self._device, self._host = self._host.to(loss.device), self._host.pin_memory()
            before = self._device
            step = torch.where(before.isfinite(), before.lerp(latest, 1 - DECAY), latest)
            self._device = torch.where(latest.isfinite(), step, before)
            self._host.copy_(self._device, non_blocking=True)
