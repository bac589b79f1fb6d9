"""Members of a run's ensembles, and the class probabilities that states predict."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.objective import Batch
from lsam_hpc.trajectory import Run


def chains_with_samples(run: Run) -> list[int]:
    """Return a rank of each chain that logged snapshots of its samples; the ranks of a group are one chain."""
    if run.config.get("shard", "none") != "none":  # a log is that of a chain
        return [rank for rank in run.ranks if _has_samples(run, rank)]
    ranks = int(run.log(run.ranks[0]).attributes["ranks"])
    group = ranks if run.config.get("synchronous") else int(run.config.get("group_size") or 1)
    first = {rank // group: rank for rank in reversed(run.ranks) if _has_samples(run, rank)}
    return sorted(first.values())


def members(run: Run, rank: int, start: float, thin: int) -> list[int]:
    """Return the indices of a chain's snapshots that are members of an ensemble, in order.

    Args:
        run: with snapshots of the sample.
        rank: of the chain.
        start: share of the chain's steps to leave out at its beginning, as in `chains`.
        thin: take every `thin`-th snapshot, counted back from the last one.

    Raises:
        InputError: `start` is not in [0, 1), or `thin` is less than 1.
    """
    if not 0 <= start < 1:
        raise InputError(f"--from: expected a share of the steps in [0, 1), found {start}")
    if thin < 1:
        raise InputError(f"--thin: expected 1 or more, found {thin}")
    steps = len(run.steps(rank)["iteration"])
    late = np.flatnonzero(run.snapshots(rank)["iteration"] >= int(start * steps))
    return [int(index) for index in late[::-1][::thin][::-1]]


@torch.no_grad()
def probabilities(at: AbstractContextManager[nn.Module], batches: Sequence[Batch]) -> NDArray[np.float64]:
    """Return the class probabilities that a state predicts, the softmax of the model's outputs, shape (N, classes).

    Args:
        at: sets the model to the state, such as `objective.at(x)`.
        batches: pairs (inputs, targets).

    Raises:
        InputError: the outputs are no finite scores of classes.
    """
    rows: list[Tensor] = []
    with at as model:
        for inputs, targets in batches:
            outputs = model(inputs)
            if not isinstance(outputs, Tensor) or outputs.ndim != 2 or len(outputs) != len(targets):
                shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
                raise InputError(f"model: expected outputs of shape ({len(targets)}, classes), found {shape}")
            rows.append(outputs.cpu().double().softmax(1))
    predicted: NDArray[np.float64] = torch.cat(rows).numpy()
    if not np.isfinite(predicted).all():
        raise InputError("model: expected finite outputs at every state, found infinity or NaN")
    return predicted


def _has_samples(run: Run, rank: int) -> bool:
    return "snapshot/sample" in run.log(rank).tables and len(run.snapshots(rank)["iteration"]) > 0
