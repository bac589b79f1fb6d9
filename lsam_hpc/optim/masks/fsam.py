"""FSAM: the ascent moves the coordinates with the largest Fisher information of a mini-batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lsam_hpc.errors import InputError
from lsam_hpc.optim.masks.base import DENSITY, REFRESH, OfGradients, largest
from lsam_hpc.optim.masks.norm import is_normalization


class FSAM(OfGradients):
    """Selects the coordinates with the largest Fisher information: e = rho * m g / (|g| + gamma).

    The Fisher information of a coordinate is estimated by g^2, g being the gradient of the mini-batch for which the
    mask is made. m = 1 for the int(density * n) largest of the n coordinates of all weights together. Biases,
    embeddings and normalization layers are dense: m = 1. A bias or an embedding has "bias" or "embed" in its name, or
    belongs to an `nn.Embedding`.

    Args:
        model: names the parameters.
        density: share of the weights' coordinates that move, > 0 and <= 1. Default 0.5.
        refresh: ascents between two masks, >= 1. Default 100.

    Raises:
        InputError: an argument is out of range, or all parameters of the model are dense.

    Source: Zhong et al. 2022, "Improving Sharpness-Aware Minimization with Fisher Mask for Better Generalization on
    Language Models" (arXiv 2210.05497), algorithm 1. Of the normalization layers the authors' code leaves BatchNorm
    dense only. It clears the gradient after it makes a mask, so that the mask first acts in the next step; here it acts
    in the same step.
    """

    def __init__(self, model: nn.Module, density: float = DENSITY, refresh: int = REFRESH) -> None:
        super().__init__(density, refresh)
        by_type = [m for m in model.modules() if is_normalization(m) or isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
        self._dense = {p for module in by_type for p in module.parameters(recurse=False)}
        self._dense |= {p for name, p in model.named_parameters() if "bias" in name or "embed" in name}
        if all(self.dense(p) for p in model.parameters()):
            raise InputError("mask: expected weights besides biases, embeddings and normalization layers, found none")

    def dense(self, param: Tensor) -> bool:
        """Return True for biases, embeddings and normalization layers."""
        return param in self._dense

    def make(self, grads: list[Tensor]) -> list[Tensor]:
        """Return the masks of the largest gradients."""
        # The order of |g| is that of g^2, which may underflow.
        scores = [g.abs().to(torch.promote_types(g.dtype, torch.float32)) for g in grads]
        return largest(scores, max(1, int(self.density * sum(g.numel() for g in grads))))
