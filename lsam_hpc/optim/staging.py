"""Copies a chain's tensors to host memory and back; on CUDA in a side stream, beside the computation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lsam_hpc.optim.flat import FlatVector


class Staging:
    """A vector in host memory and one on the tensors' device; for CPU tensors both are the same vector.

    On CUDA the host vector is pinned and a side stream copies, so `take` and `views` return immediately.

    Args:
        like: tensors whose elements the vector holds; P elements in all.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self._device_vector = FlatVector(like)
        self.host = self._device_vector.vector
        self._stream: torch.cuda.Stream | None = None
        if self.host.device.type != "cpu":
            on_cuda = self.host.device.type == "cuda"
            self.host = torch.empty(self.host.shape, dtype=self.host.dtype, pin_memory=on_cuda)
            if on_cuda:
                self._stream = torch.cuda.Stream(self._device_vector.vector.device)
        self._copied = torch.cuda.Event() if self._stream else None

    def take(self, tensors: Sequence[Tensor]) -> None:
        """Start to copy the tensors to `host`; `land` waits for the copy."""
        if self._copied is not None:  # an earlier copy from or to this vector may still run
            torch.cuda.current_stream(self._device_vector.vector.device).wait_event(self._copied)
        self._device_vector.gather(tensors)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device_vector.vector.device))
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
        if self._copied is not None:
            torch.cuda.current_stream(self._device_vector.vector.device).wait_event(self._copied)
        return self._device_vector.views

    def _copy(self, target: Tensor, source: Tensor) -> None:
        if target is source:
            return
        if self._stream is None or self._copied is None:
            target.copy_(source)
            return
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            self._copied.record(self._stream)
