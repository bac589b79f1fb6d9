"""ESAM's stochastic weight perturbation: the ascent leaves out whole tensors, whose gradient is not computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lsam_hpc.optim.masks.base import DENSITY, Mask, check_density, generator_of


class Tensors(Mask):
    """Selects whole parameters at random: e = (rho / density) * g_S / (|g_S| + gamma) there, 0 elsewhere.

    In each step but the first, each parameter is left out with probability 1 - density. With the ascent sam,
    `step(closure)` does not compute the gradients of those that are left out in the pass at x. In phases use
    `SAM.masked`. All ranks that share a gradient must have the same seed. DistributedDataParallel needs
    `find_unused_parameters=True`.

    Args:
        density: probability that a parameter moves, > 0 and <= 1; beta in the paper. Default 0.5.
        seed: seed of the draws. Default 0.

    Raises:
        InputError: the density is out of range.

    Source: Du et al. 2021 (arXiv 2110.03141), stochastic weight perturbation (SWP), and the authors' code, which draws
    whole parameters where the paper draws elements. Not from there: if a draw leaves out all parameters, all move.
    """

    partial = True
    elementwise = True
    in_steps = True

    def __init__(self, density: float = DENSITY, seed: int = 0) -> None:
        self.density, self.seed = check_density(density), seed
        self._count = 0  # steps so far
        self._left_out: set[Tensor] = set()
        self._off: list[Tensor] = []  # parameters whose requires_grad is switched off

    def selects(self, param: Tensor) -> bool:
        """Return True if the parameter moves in this step."""
        return param not in self._left_out

    def begin_passes(self, params: Sequence[Tensor], *, ascent_only: bool) -> None:
        """Switch off the gradients of the parameters that are left out, if the first pass is the ascent's."""
        if ascent_only:
            self._off = [p for p in params if not self.selects(p) and p.requires_grad]
            switch(self._off, on=False)

    def multiply_(self, params: Sequence[Tensor], direction: list[Tensor]) -> None:
        """Divide by the density."""
        torch._foreach_div_(direction, self.density)

    def moved(self, params: Sequence[Tensor]) -> None:
        """Switch all gradients on again: the descent uses them."""
        self.end_passes()

    def end_passes(self) -> None:
        """Restore `requires_grad`."""
        switch(self._off, on=True)
        self._off = []

    def end_step(self, params: Sequence[Tensor]) -> None:
        """Draw the parameters of the next step."""
        self._count += 1
        self._draw(params)

    def _draw(self, params: Sequence[Tensor]) -> None:
        trained = [p for p in params if p.requires_grad]
        draws = torch.rand(len(trained), generator=generator_of(self.seed, self._count), dtype=torch.float64)
        left_out = {p for p, draw in zip(trained, draws.tolist(), strict=True) if draw > self.density}
        self._left_out = left_out if self._count and len(left_out) < len(trained) else set()

    def state_dict(self, params: Sequence[Tensor]) -> dict[str, Any]:
        """Return the number of steps, which determines the draw."""
        return {**super().state_dict(params), "steps": self._count}

    def load_state_dict(self, state: dict[str, Any], params: Sequence[Tensor]) -> None:
        """Load what `state_dict` returned."""
        self._count = state["steps"]
        self._draw(params)


def switch(params: Sequence[Tensor], *, on: bool) -> None:
    """Set `requires_grad` of the parameters."""
    for p in params:
        p.requires_grad_(on)
