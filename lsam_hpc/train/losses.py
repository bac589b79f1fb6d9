"""The loss of a training step, as a function of the model and the mini-batch."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from lsam_hpc.optim.samples import Losses, conadv_loss

Batch: TypeAlias = tuple[Tensor, ...]  # images, labels and, with ConAdv, adversarial images


def batch_loss(model: nn.Module, batch: Batch, *, bf16: bool = False) -> Tensor:
    """Return the mean cross-entropy; with adversarial images the mean of theirs and of the clean ones'.

    Args:
        model: with float32 weights.
        batch: images, labels and, with ConAdv, adversarial images.
        bf16: whether the pass is in bfloat16 where torch.autocast does so; the loss is float32. Default False.
    """
    x, y, *adversarial = batch
    with _autocast(x.device, bf16=bf16):
        return conadv_loss(model, x, y, adversarial[0]) if adversarial else functional.cross_entropy(model(x), y)


def sample_losses(model: nn.Module, batch: Batch, *, bf16: bool = False) -> Losses:
    """Return the function that `sample_step` takes: the cross-entropy of each sample; arguments as of `batch_loss`."""
    x, y = batch

    def losses(chosen: Tensor | None) -> Tensor:
        images, labels = (x, y) if chosen is None else (x[chosen], y[chosen])
        with _autocast(x.device, bf16=bf16):
            return functional.cross_entropy(model(images), labels, reduction="none")

    return losses


def _autocast(device: torch.device, *, bf16: bool) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()
