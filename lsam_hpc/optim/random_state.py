"""Repeats random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lsam_hpc.optim import accelerators


def repeating(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of which each call draws the random numbers of the first, on the CPU and the present device."""
    saved: list[tuple[Tensor, dict[str, Tensor]]] = []

    def repeated(*arguments: Any) -> Any:  # noqa: ANN401
        if not saved:
            saved.append((torch.get_rng_state(), accelerators.rng_states()))
        else:
            cpu, others = saved[0]
            torch.set_rng_state(cpu)
            accelerators.set_rng_states(others)
        return function(*arguments)

    return repeated
