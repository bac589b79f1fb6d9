"""Evaluation of a model."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from lsam_hpc.optim.batchnorm import layers
from lsam_hpc.optim.parts import mesh_of
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
    """Return the mean cross-entropy and the error in % of a model in eval mode; its mode is restored.

    The ranks that hold the model's shards (FSDP2) share the mini-batches and return the same; collective in them. With
    BatchNorm, whose statistics are each rank's own, each of them evaluates all.
    """
    mesh = None if layers(model) else mesh_of(model.parameters())
    rank, ranks = (0, 1) if mesh is None else (mesh.get_local_rank(), mesh.size())
    size = batch_size(y)
    training = model.training
    model.eval()
    loss, wrong = 0.0, 0
    for first in range(0, len(y), size * ranks):
        begin = first + size * rank
        if not (has_own := begin < len(y)):
            begin = first  # a pass whose results are not used: the other ranks need this one's shards
        logits, labels = model(x[begin : begin + size]), y[begin : begin + size]
        if has_own:
            loss += functional.cross_entropy(logits, labels, reduction="sum").item()
            wrong += int((logits.argmax(1) != labels).sum())
    model.train(training)
    if mesh is not None:
        sums = torch.tensor([loss, wrong], dtype=torch.float64, device=mesh.device_type)
        distributed.all_reduce(sums, group=mesh.get_group())
        loss, wrong = sums[0].item(), int(sums[1])
    return loss / y.shape.numel(), 100 * wrong / y.shape.numel()
