"""A chain's smoothed mini-batch loss, which the chain publishes; reading it never waits for a GPU."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from lsam_hpc.optim.accelerators import KINDS

DECAY = 0.9  # weight of the previous mean in the new one


class SmoothedLoss:
    """Exponential moving average of a chain's mini-batch losses, in float32; NaN before the first loss."""

    def __init__(self) -> None:
        self._mean = math.nan
        self._device: Tensor | None = None  # the mean on the GPU
        self._host: Tensor | None = None  # copy of it, which may lag by one step

    @property
    def value(self) -> float:
        """The current mean."""
        return self._mean if self._host is None else self._host.item()

    def set(self, value: float) -> None:
        """Replace the mean."""
        self._mean = float(np.float32(value))
        self._device = self._host = None

    def add(self, loss: Tensor | float) -> None:
        """Add the loss of one step; a loss that is not finite is ignored."""
        if not (isinstance(loss, Tensor) and loss.device.type in KINDS):
            new, old = loss.item() if isinstance(loss, Tensor) else loss, self.value
            if math.isfinite(new):
                # After a mean that is not finite (none yet, or set by the caller), start from this loss.
                self.set(DECAY * old + (1 - DECAY) * new if math.isfinite(old) else new)
            return
        with torch.no_grad():
            latest = loss.detach().float()
            if self._device is None or self._host is None:
                self._host = torch.tensor(self._mean).pin_memory()
                self._device = self._host.to(loss.device)
            before = self._device
            step = torch.where(before.isfinite(), before.lerp(latest, 1 - DECAY), latest)
            self._device = torch.where(latest.isfinite(), step, before)
            self._host.copy_(self._device, non_blocking=True)
