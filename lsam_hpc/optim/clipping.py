"""Coordinate-wise clipping: the largest coordinates of a gradient, to the largest of the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lsam_hpc.errors import InputError
from lsam_hpc.optim.gradients import present
from lsam_hpc.options.option import Range


def clip_coordinates(base: Optimizer, fraction: float) -> RemovableHandle:
    """Clip the largest coordinates of the gradients at the start of each step of an optimizer.

    g_i <- sign(g_i) min(|g_i|, c), where c is the largest magnitude but for the int(fraction * n) largest of the n
    coordinates of all parameters together. The parameters get new gradients; the old ones are not overwritten.
    A step needs memory for 2 n more numbers. torch does not copy hooks: a deep copy of the optimizer does not clip.

    Args:
        base: the optimizer; with SAM and LSAM the base optimizer, so that the descent is clipped and the ascent is not.
        fraction: fraction of the coordinates, >= 0 and < 1; 0: none are clipped.

    Returns:
        A handle; its `remove()` ends the clipping.

    Raises:
        InputError: the fraction is out of its range, or the optimizer is SAM. In a step: it has a closure, which would
            compute the gradients after they are clipped; or the gradients are sparse, or shards of a tensor.

    Source: Pan & Li 2023, "Toward Understanding Why Adam Converges Faster Than SGD for Transformers"
    (arXiv 2306.00204). Their Adam clips the gradients of the first moment only; here both moments are of clipped ones.
    """
    limits = Range(least=0, below=1)
    if fraction not in limits:
        raise InputError(f"fraction: expected {limits}, found {fraction!r}")
    if hasattr(base, "perturb"):
        raise InputError(f"base: expected the base optimizer, opt.base, found {type(base).__name__}")

    @torch.no_grad()
    def clip(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if args[1:2] not in ((), (None,)) or kwargs.get("closure") is not None:
            raise InputError("clip_coordinates: expected step() without a closure, found one, which would run after it")
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        params, grads = present(parameters)
        if any(hasattr(grad, "to_local") for grad in grads):  # a DTensor: the threshold would be a shard's
            raise InputError("clip_coordinates: expected whole gradients, found shards (DTensor)")
        threshold = _threshold(grads, fraction)
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad.clamp(-threshold, threshold)

    return base.register_step_pre_hook(clip)


def _threshold(grads: list[Tensor], fraction: float) -> Tensor:
    """Return the largest magnitude but for the int(fraction * n) largest, a scalar tensor."""
    magnitudes = torch.cat([grad.abs().reshape(-1) for grad in grads])
    return magnitudes.kthvalue(len(magnitudes) - int(len(magnitudes) * fraction)).values
