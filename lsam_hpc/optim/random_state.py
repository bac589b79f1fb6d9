"""Repeats random numbers: the state of torch's generators, saved once and restored afterwards."""

from __future__ import annotations

import torch


class RandomState:
    """The state of torch's global generators, on the CPU and on the present CUDA device."""

    def __init__(self) -> None:
        self._cpu: torch.Tensor | None = None
        self._cuda: torch.Tensor | None = None

    def save_or_restore(self) -> None:
        """Save the state at the first call, and restore it at the others."""
        on_cuda = torch.cuda.is_initialized()
        if self._cpu is None:
            self._cpu = torch.get_rng_state()
            self._cuda = torch.cuda.get_rng_state() if on_cuda else None
            return
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda)
