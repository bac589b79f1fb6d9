"""SAM-ON: the ascent moves the parameters of normalization layers only."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from lsam_hpc.errors import InputError
from lsam_hpc.optim.masks.base import Mask


class Norm(Mask):
    """Selects the parameters of normalization layers: e = rho * g_N / (|g_N| + gamma) there, 0 elsewhere.

    Args:
        model: its normalization layers are selected, see `is_normalization`.

    Raises:
        InputError: the model has no such layer with parameters.

    Source: Mueller et al. 2023, "Normalization Layers Are All That Sharpness-Aware Minimization Needs"
    (arXiv 2306.04226), SAM-ON.
    """

    partial = True

    def __init__(self, model: nn.Module) -> None:
        layers = [module for module in model.modules() if is_normalization(module)]
        self._chosen = {p for layer in layers for p in layer.parameters(recurse=False)}
        if not self._chosen:
            raise InputError("mask: expected a model with normalization layers that have parameters, found none")

    def selects(self, param: Tensor) -> bool:
        """Return True if the parameter belongs to a normalization layer."""
        return param in self._chosen


def is_normalization(module: nn.Module) -> bool:
    """Return True for a normalization layer of torch, and for classes of others that look like one.

    These have "norm" in the name of their class, as transformers' LlamaRMSNorm. Their parameters are vectors (all
    dimensions but one are 1), and their submodules have none. A linear layer with normalized weights has a matrix.
    """
    if isinstance(module, (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)):
        return True
    own = list(module.parameters(recurse=False))
    return (
        "norm" in type(module).__name__.lower()
        and bool(own)
        and all(p.numel() == max(p.shape, default=1) for p in own)
        and len(own) == len(list(module.parameters()))
    )
