"""Copies a chain's tensors to host memory and back; on GPUs in a side stream, beside the computation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lsam_hpc.optim.accelerators import module_of
from lsam_hpc.optim.flat import FlatVector


class Staging:
    """A vector in host memory and one on the tensors' device; for CPU tensors both are the same vector.

    On CUDA and XPU the host vector is pinned and a side stream copies, so `take` and `views` return immediately.

    Args:
        like: tensors whose elements the vector holds; P elements in all.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self._device_vector = FlatVector(like)
        self.host = self._device_vector.vector
        device = self.host.device
        self._module = module_of(device)
        if device.type != "cpu":
            self.host = torch.empty(self.host.shape, dtype=self.host.dtype, pin_memory=self._module is not None)
        self._stream = self._module.Stream(device) if self._module else None
        self._copied = self._module.Event() if self._module else None

    def take(self, tensors: Sequence[Tensor]) -> None:
        """Start to copy the tensors to `host`; `land` waits for the copy."""
        self._wait()  # an earlier copy from or to this vector may still run
        self._device_vector.gather(tensors)
        if self._module is not None and self._stream is not None:
            self._stream.wait_stream(self._module.current_stream(self._device_vector.vector.device))
        self._copy(self.host, self._device_vector.vector)

    def land(self) -> None:
        """Wait until the copy that `take` started is complete."""
        if self._copied is not None:
            self._copied.synchronize()

    def send(self) -> None:
        """Start to copy `host` to the tensors' device; `views` orders later kernels after the copy."""
        self._copy(self._device_vector.vector, self.host)

    def views(self) -> list[Tensor]:
        """Return the vector that `send` copied, as one view per tensor; later kernels run after the copy."""
        self._wait()
        return self._device_vector.views

    def _wait(self) -> None:
        """Let the device's later kernels wait for the last copy."""
        if self._module is not None:
            self._module.current_stream(self._device_vector.vector.device).wait_event(self._copied)

    def _copy(self, target: Tensor, source: Tensor) -> None:
        if target is source:
            return
        if self._module is None or self._copied is None:
            target.copy_(source)
            return
        with self._module.stream(self._stream):
            target.copy_(source, non_blocking=True)
            self._copied.record(self._stream)
