"""The loss of a chain that others are told: smoothed over the steps, and nobody waits for a GPU."""

from __future__ import annotations

import math

import torch
from torch import Tensor

KEPT = 0.9  # of the value before, per step


class SmoothedLoss:
    """An exponential mean of a chain's mini-batch losses, NaN before the first."""

    def __init__(self) -> None:
        self._host = torch.full((), math.nan)
        self._device: Tensor | None = None  # the value on the GPU, of which `_host` is a copy, a step late perhaps

    @property
    def value(self) -> float:
        """The mean."""
        return self._host.item()

    def set(self, value: float) -> None:
        """Make the mean another."""
        self._host.fill_(value)
        self._device = None

    def add(self, loss: Tensor | float) -> None:
        """Take in the loss of a step; one that is not finite is left out."""
        if not (isinstance(loss, Tensor) and loss.is_cuda):
            new, old = loss.detach().item() if isinstance(loss, Tensor) else loss, self.value
            if math.isfinite(new):
                # One loss that overflowed says nothing of the next.
                self.set(KEPT * old + (1 - KEPT) * new if math.isfinite(old) else new)
            return
        with torch.no_grad():
            latest = loss.detach().float()
            if self._device is None:
                self._device, self._host = self._host.to(loss.device), self._host.pin_memory()
            before = self._device
            step = torch.where(before.isfinite(), before.lerp(latest, 1 - KEPT), latest)
            self._device = torch.where(latest.isfinite(), step, before)
            self._host.copy_(self._device, non_blocking=True)
