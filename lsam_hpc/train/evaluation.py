"""Evaluation of a model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lsam_hpc.train.dataset import Images

SUBSET = 5000  # training images that the training loss and BatchNorm statistics are computed on at the end


@torch.no_grad()
def evaluate(model: nn.Module, x: Images | Tensor, y: Tensor) -> tuple[float, float]:
    """Return the mean cross-entropy and the error in % of a model in eval mode; its mode is restored."""
    training = model.training
    model.eval()
    loss, wrong = 0.0, 0
    for images, labels in zip(x.split(512), y.split(512), strict=True):
        logits = model(images)
        loss += functional.cross_entropy(logits, labels, reduction="sum").item()
        wrong += int((logits.argmax(1) != labels).sum())
    model.train(training)
    return loss / len(y), 100 * wrong / len(y)
