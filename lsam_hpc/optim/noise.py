"""The Langevin noise of a chain."""

from __future__ import annotations

import math
from typing import Any

import torch

from lsam_hpc.optim.flat import FlatVector


class LangevinNoise:
    """Adds sqrt(2 lr T) * N(0, I) to parameters, with each group's learning rate.

    Args:
        device: of the parameters.
        seed: of the noise.
    """

    def __init__(self, device: torch.device, seed: int) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)
        self._drawn: FlatVector | None = None

    def add(self, groups: list[dict[str, Any]], temperature: float) -> None:
        """Move the parameters that have a gradient; the others' numbers are drawn too.

        Args:
            groups: the optimizer's groups.
            temperature: T > 0.
        """
        if self._drawn is None:
            self._drawn = FlatVector([p for group in groups for p in group["params"]])
        self._drawn.vector.normal_(generator=self.generator)
        at = 0
        for group in groups:
            params = group["params"]
            drawn = self._drawn.views[at : at + len(params)]
            at += len(params)
            moving = [(p, n) for p, n in zip(params, drawn, strict=True) if p.grad is not None]
            if moving:
                scale = math.sqrt(2 * float(group["lr"]) * temperature)
                torch._foreach_add_([p for p, _ in moving], [n for _, n in moving], alpha=scale)
