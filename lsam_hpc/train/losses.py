"""The loss of a training step, as a function of the model and the mini-batch."""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor, nn
from torch.nn import functional

from lsam_hpc.optim.samples import Losses, conadv_loss

Batch: TypeAlias = tuple[Tensor, ...]  # images, labels and, with ConAdv, adversarial images


def batch_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy; with adversarial images the mean of theirs and of the clean ones'."""
    x, y, *adversarial = batch
    return conadv_loss(model, x, y, adversarial[0]) if adversarial else functional.cross_entropy(model(x), y)


def sample_losses(model: nn.Module, batch: Batch) -> Losses:
    """Return the function that `sample_step` takes: the cross-entropy of each sample."""
    x, y = batch

    def losses(chosen: Tensor | None) -> Tensor:
        images, labels = (x, y) if chosen is None else (x[chosen], y[chosen])
        return functional.cross_entropy(model(images), labels, reduction="none")

    return losses
