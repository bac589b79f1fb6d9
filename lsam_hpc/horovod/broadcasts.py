"""Horovod's broadcasts, for models whose `state_dict` returns the center and for optimizers with a chain."""

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
    """Copy the root's values to all ranks, as `horovod.torch.broadcast_parameters` does.

    After the first step all chains and the center restart from these values.

    Args:
        params: a model's state_dict or named_parameters, or a list of tensors.
        root_rank: rank whose values are sent.
    """
    values = list(params.values()) if isinstance(params, Mapping) else params
    tensors = [p[1] if isinstance(p, tuple) else p for p in values] if isinstance(values, list) else []
    optimizers = [o for o in session.optimizers if isinstance(o, LsamOptimizer)]
    for optimizer in optimizers:
        optimizer.restore_sample()
    _broadcast_parameters(params, root_rank)
    for optimizer in optimizers:
        optimizer.take_broadcast([t for t in tensors if isinstance(t, torch.Tensor)])


def broadcast_optimizer_state(optimizer: Optimizer, root_rank: int, model: nn.Module | None = None) -> None:
    """Copy the root's optimizer state to all ranks, as `horovod.torch.broadcast_optimizer_state` does.

    Args:
        optimizer: any; if it has a chain, its base optimizer's state is sent.
        root_rank: rank whose state is sent.
        model: passed to Horovod.
    """
    if isinstance(optimizer, LsamOptimizer):
        optimizer.restore_sample()
        optimizer = optimizer.base
    _broadcast_optimizer_state(optimizer, root_rank, model)
