"""Evaluation of a model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lsam_hpc.train.dataset import Dataset, Inputs, Labels, batch_size

SUBSET = 5000  # training images or windows that loss and BatchNorm statistics are computed on at the end


def results(state: str, model: nn.Module, dataset: Dataset) -> dict[str, float]:
    """Return what a log's result says of a state: training loss, test error, and of text the perplexity per byte.

    Args:
        state: "sample" or "center", the beginning of the names.
        model: holds it.
        dataset: on the same device.
    """
    train_loss, _ = evaluate(model, dataset.train_x[:SUBSET], dataset.train_y[:SUBSET])
    test_loss, error = evaluate(model, dataset.test_x, dataset.test_y)
    measured = {f"{state}_train_loss": train_loss, f"{state}_test_error": error}
    return measured | ({f"{state}_test_perplexity": float(np.exp(test_loss))} if dataset.is_text else {})


@torch.no_grad()
def evaluate(model: nn.Module, x: Inputs | Tensor, y: Labels) -> tuple[float, float]:
    """Return the mean cross-entropy and the error in % of a model in eval mode; its mode is restored."""
    size = batch_size(y)
    training = model.training
    model.eval()
    loss, wrong = 0.0, 0
    for images, labels in zip(x.split(size), y.split(size), strict=True):
        logits = model(images)
        loss += functional.cross_entropy(logits, labels, reduction="sum").item()
        wrong += int((logits.argmax(1) != labels).sum())
    model.train(training)
    return loss / y.shape.numel(), 100 * wrong / y.shape.numel()
