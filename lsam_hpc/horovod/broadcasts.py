"""Horovod's broadcasts, for models whose `state_dict` gives copies of the center and optimizers that have a chain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import horovod.torch.functions as real
import torch
from torch import nn
from torch.optim import Optimizer

from lsam_hpc.horovod.session import session
from lsam_hpc.horovod.wrapped import LsamOptimizer

_broadcast_parameters, _broadcast_optimizer_state = real.broadcast_parameters, real.broadcast_optimizer_state


def broadcast_parameters(params: Any, root_rank: int) -> None:  # noqa: ANN401 - as Horovod's
    """Give every rank the root's values, as `horovod.torch.broadcast_parameters`.

    After the first step the chains restart from these: samples, and the center.

    Args:
        params: a model's state_dict or named_parameters, or a list of tensors.
        root_rank: whose values.
    """
    given = list(params.values()) if isinstance(params, Mapping) else params
    tensors = [p[1] if isinstance(p, tuple) else p for p in given] if isinstance(given, list) else []
    optimizers = [o for o in session.optimizers if isinstance(o, LsamOptimizer)]
    for optimizer in optimizers:
        optimizer.rest()
    _broadcast_parameters(params, root_rank)
    for optimizer in optimizers:
        optimizer.take_broadcast([t for t in tensors if isinstance(t, torch.Tensor)])


def broadcast_optimizer_state(optimizer: Optimizer, root_rank: int, model: nn.Module | None = None) -> None:
    """Give every rank the root's optimizer state, as `horovod.torch.broadcast_optimizer_state`.

    Args:
        optimizer: any; of one that has a chain, the state of the optimizer that takes its steps.
        root_rank: whose state.
        model: as Horovod's.
    """
    if isinstance(optimizer, LsamOptimizer):
        optimizer.rest()
        optimizer = optimizer.base
    _broadcast_optimizer_state(optimizer, root_rank, model)
