"""AdaSAP: an ascent radius for each neuron, larger for neurons of small weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lsam_hpc.errors import InputError
from lsam_hpc.optim.flat import widest_dtype
from lsam_hpc.optim.masks.base import Mask


class AdaSAP(Mask):
    """Gives each neuron its own ascent radius: e_i = rho_i g_i / (|g| + gamma) for the coordinates of neuron i.

        rho_i = rho - (psi_i - psi_min) / (psi_max - psi_min) (rho - least rho)

    psi_i is the Euclidean norm of the neuron's weights at x; psi_min and psi_max are over all neurons. A neuron is a
    row of a weight of two or more dimensions, and the entry of the bias of the same module. Other parameters, such as
    those of normalization layers, have the radius rho. The norm |g| is over all coordinates. If all psi are equal, all
    radii are rho.

    Args:
        model: its modules have the weights.
        least: smallest radius as a part of rho, 0 to 1. Default 0.01.

    Raises:
        InputError: an argument is out of range, or the model has no weights of two or more dimensions.

    Source: Bair et al. 2024, "Adaptive Sharpness-Aware Pruning for Robust Sparse Networks" (arXiv 2306.14306), the
    radius of a neuron. We know the formula, not the authors' code: the score, the bias's radius, the extremes over the
    whole network, the common norm |g| and the default of `least` are ours.
    """

    elementwise = True

    def __init__(self, model: nn.Module, least: float = 0.01) -> None:
        if not 0 <= least <= 1:
            raise InputError(f"mask: expected a smallest radius from 0 to 1, found {least!r}")
        self.least = least
        self._weight: dict[Tensor, Tensor] = {}  # a parameter -> the weight whose rows are its neurons
        for module in model.modules():
            own = list(module.parameters(recurse=False))
            matrices = [p for p in own if p.ndim > 1]
            self._weight |= {p: p for p in matrices}
            if len(matrices) == 1:
                rows = len(matrices[0])
                self._weight |= {p: matrices[0] for p in own if p.shape == (rows,)}
        if not self._weight:
            raise InputError("mask: expected a model with weights of two or more dimensions, found none")
        self._parts: dict[Tensor, Tensor] = {}  # a weight -> rho_i / rho of its neurons

    def prepare(self, params: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Compute the radii at x."""
        weights = list(dict.fromkeys(self._weight.values()))
        dtype = widest_dtype(weights)
        scores = [weight.detach().flatten(1).norm(dim=1, dtype=dtype) for weight in weights]
        device = scores[0].device
        extremes = torch.stack([torch.stack(score.aminmax()).to(device) for score in scores])
        least, most = extremes[:, 0].min(), extremes[:, 1].max()
        width = (most - least).clamp_min(torch.finfo(least.dtype).tiny)
        self._parts = {
            weight: 1 - (score - least.to(score.device)) / width.to(score.device) * (1 - self.least)
            for weight, score in zip(weights, scores, strict=True)
        }

    def multiply_(self, params: Sequence[Tensor], direction: list[Tensor]) -> None:
        """Multiply the coordinates of each neuron by rho_i / rho."""
        for p, d in zip(params, direction, strict=True):
            weight = self._weight.get(p)
            if weight is not None:
                d.mul_(self._parts[weight].view(-1, *[1] * (d.ndim - 1)))
