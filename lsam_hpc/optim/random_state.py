"""Repeats random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def repeating(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of which each call draws the random numbers of the first, on the CPU and the present GPU."""
    saved: list[tuple[Tensor, Tensor | None]] = []

    def repeated(*arguments: Any) -> Any:  # noqa: ANN401
        if not saved:
            saved.append((torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None))
        else:
            cpu, cuda = saved[0]
            torch.set_rng_state(cpu)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda)
        return function(*arguments)

    return repeated
