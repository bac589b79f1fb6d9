"""The numbers of each step; on GPUs they are read one step late, so that the host never waits for the newest step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from lsam_hpc.optim.accelerators import module_of

_T = TypeVar("_T")


class StepNumbers(Generic[_T]):
    """Passes what is known of a step on the host, and its numbers from the device, to a function, in the steps' order.

    On the CPU that happens in `add`. On CUDA and XPU `add` starts a copy to pinned memory and passes on the last step.
    So the host is at most one step ahead of the device, which always has work.

    Args:
        device: of the chain.
        receive: called with a step's host values and its numbers.
    """

    def __init__(self, device: torch.device, receive: Callable[[_T, list[float]], None]) -> None:
        self._module, self._receive = module_of(device), receive
        self._waiting: tuple[_T, Tensor, Any] | None = None

    def add(self, known: _T, numbers: list[Tensor]) -> None:
        """Add a step.

        Args:
            known: values on the host, read before the next step changes them.
            numbers: scalar tensors, on the device or the host.
        """
        if self._module is None:
            self._receive(known, [number.item() for number in numbers])
            return
        device = next((number.device for number in numbers if number.device.type != "cpu"), None)
        # A scalar of the host, such as the NaN of a step without ascent, is copied without waiting too.
        stacked = torch.stack([number.detach().to(device, torch.float32, non_blocking=True) for number in numbers])
        host = torch.empty(len(numbers), pin_memory=True)
        host.copy_(stacked, non_blocking=True)
        copied = self._module.Event()
        copied.record()
        self.flush()
        self._waiting = known, host, copied

    def flush(self) -> None:
        """Wait for the step that was added last, and pass it on: before a checkpoint and at the end."""
        if self._waiting is None:
            return
        known, host, copied = self._waiting
        self._waiting = None
        copied.synchronize()
        self._receive(known, host.tolist())
