"""A mask of random coordinates."""

from __future__ import annotations

import torch
from torch import Tensor

from lsam_hpc.optim.masks.base import DENSITY, REFRESH, OfGradients


class Random(OfGradients):
    """Selects random coordinates: e = rho * m g / (|g| + gamma), m ~ Bernoulli(density).

    Nobody published it as an optimizer: in the paper of SSAM it is the baseline of an ablation. For ESAM's stochastic
    weight perturbation see `Tensors`.

    Args:
        density: probability that a coordinate moves, > 0 and <= 1. Default 0.5.
        refresh: ascents between two draws, >= 1. Default 100.
        seed: seed of the draws. Default 0.

    Source: Mi et al. 2022, "Make Sharpness-Aware Minimization Stronger: A Sparsified Perturbation Approach"
    (arXiv 2210.05177), random mask.
    """

    def __init__(self, density: float = DENSITY, refresh: int = REFRESH, seed: int = 0) -> None:
        super().__init__(density, refresh)
        self.seed = seed

    def make(self, grads: list[Tensor]) -> list[Tensor]:
        """Return new draws."""
        # A new seed per draw: unlike a generator it has no state to save.
        seed = self.seed * 1_000_003 + self._count
        generators = {device: torch.Generator(device).manual_seed(seed) for device in {g.device for g in grads}}
        draws = [torch.rand(g.shape, generator=generators[g.device], device=g.device) for g in grads]
        return [draw < self.density for draw in draws]
