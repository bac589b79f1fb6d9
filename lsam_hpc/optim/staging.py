"""The way of a chain's tensors to host memory and back, for which the compute stream never waits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lsam_hpc.optim.flat import FlatVector


class Staging:
    """A vector in host memory and its twin beside the tensors; on the CPU they are one.

    On CUDA the host's is pinned and a side stream copies: `take` and `views` return at once.

    Args:
        like: the tensors whose elements the vector holds, P in all.
    """

    def __init__(self, like: Sequence[Tensor]) -> None:
        self._near = FlatVector(like)
        self.host = self._near.vector
        self._stream: torch.cuda.Stream | None = None
        if self.host.device.type != "cpu":
            on_cuda = self.host.device.type == "cuda"
            self.host = torch.empty(self.host.shape, dtype=self.host.dtype, pin_memory=on_cuda)
            if on_cuda:
                self._stream = torch.cuda.Stream(self._near.vector.device)
        self._copied = torch.cuda.Event() if self._stream else None

    def take(self, tensors: Sequence[Tensor]) -> None:
        """Copy the tensors towards `host`."""
        if self._copied is not None:  # a copy to the vector that nobody has waited for yet
            torch.cuda.current_stream(self._near.vector.device).wait_event(self._copied)
        self._near.gather(tensors)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._near.vector.device))
        self._copy(self.host, self._near.vector)

    def land(self) -> None:
        """Wait until `host` holds what was taken."""
        if self._copied is not None:
            self._copied.synchronize()

    def send(self) -> None:
        """Copy `host` towards the tensors' device."""
        self._copy(self._near.vector, self.host)

    def views(self) -> list[Tensor]:
        """Return what was sent, a view for each tensor; kernels that use it start after the copy."""
        if self._copied is not None:
            torch.cuda.current_stream(self._near.vector.device).wait_event(self._copied)
        return self._near.views

    def _copy(self, to: Tensor, source: Tensor) -> None:
        if to is source:
            return
        if self._stream is None or self._copied is None:
            to.copy_(source)
            return
        with torch.cuda.stream(self._stream):
            to.copy_(source, non_blocking=True)
            self._copied.record(self._stream)
