"""The Langevin noise of a chain."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from lsam_hpc.optim.flat import FlatVector
from lsam_hpc.optim.shards import local_parts


class LangevinNoise:
    """Adds sqrt(2 lr T) * N(0, I) to parameters, with each group's learning rate; of DTensors to this rank's parts.

    Args:
        device: of the parameters.
        seed: of the noise.
    """

    def __init__(self, device: torch.device, seed: int) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)
        self._drawn: FlatVector | None = None

    def load(self, state: torch.Tensor | None, step: int) -> None:
        """Continue from a saved state of the generator; without one, draw other numbers than before.

        Args:
            state: what `generator.get_state()` returned. None: the state has none.
            step: local steps taken.
        """
        if state is None:
            # Mixed, not added: ranks have neighbouring seeds, and may be in neighbouring steps.
            mixed = np.random.SeedSequence([self.generator.initial_seed(), step])
            self.generator.manual_seed(int(mixed.generate_state(1)[0]))
        else:
            self.generator.set_state(state.cpu())

    def add(self, groups: list[dict[str, Any]], temperature: float) -> None:
        """Move the parameters that have a gradient; the others' numbers are drawn too.

        Args:
            groups: the optimizer's groups.
            temperature: T > 0.
        """
        if self._drawn is None:
            self._drawn = FlatVector(local_parts([p for group in groups for p in group["params"]]))
        self._drawn.vector.normal_(generator=self.generator)
        at = 0
        for group in groups:
            params = group["params"]
            drawn = self._drawn.views[at : at + len(params)]
            at += len(params)
            moving = [(p, n) for p, n in zip(params, drawn, strict=True) if p.grad is not None]
            if moving:
                scale = math.sqrt(2 * float(group["lr"]) * temperature)
                torch._foreach_add_(local_parts([p for p, _ in moving]), [n for _, n in moving], alpha=scale)
