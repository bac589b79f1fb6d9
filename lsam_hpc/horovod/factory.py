"""`DistributedOptimizer`, with the signature of Horovod's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import horovod.torch as hvd
from horovod.torch.optimizer import DistributedOptimizer as HorovodOptimizer
from torch import Tensor
from torch.optim import Optimizer

from lsam_hpc.errors import InputError
from lsam_hpc.horovod.chain import group_sets
from lsam_hpc.horovod.options import resolve
from lsam_hpc.horovod.session import session
from lsam_hpc.horovod.wrapped import LsamOptimizer


class _Alone:
    """In place of a process set: a rank whose gradients Horovod leaves alone."""

    def included(self) -> bool:
        """Return False: nothing is sent."""
        return False


def DistributedOptimizer(  # noqa: N802, PLR0917 - Horovod's name and arguments
    optimizer: Optimizer,
    named_parameters: Iterable[tuple[str, Tensor]] | None = None,
    compression: Any = hvd.Compression.none,  # noqa: ANN401
    backward_passes_per_step: int = 1,
    op: Any = hvd.Average,  # noqa: ANN401
    gradient_predivide_factor: float = 1.0,
    num_groups: int = 0,
    groups: Any = None,  # noqa: ANN401
    sparse_as_dense: bool = False,  # noqa: FBT001, FBT002 - as Horovod's
    process_set: Any = hvd.global_process_set,  # noqa: ANN401
    **lsam: Any,  # noqa: ANN401
) -> LsamOptimizer:
    """Return an LSAM of an optimizer, where `horovod.torch.DistributedOptimizer` returns one that averages gradients.

    Each rank is a chain by itself, and its gradients are its own; with a process set or `group_size` the ranks of a set
    are one chain, and Horovod averages their gradients in the backward pass as the arguments say.

    Args:
        optimizer: takes the steps.
        named_parameters: as Horovod's; the names go into the log.
        compression: of the gradients within a group.
        backward_passes_per_step: before `step`.
        op: `Average` (default) or `Sum`, within a group. `Adasum` is refused.
        gradient_predivide_factor: within a group.
        num_groups: within a group.
        groups: of parameters, within a group.
        sparse_as_dense: within a group.
        process_set: the group. Default: each rank is one, or as `group_size` says.
        **lsam: the options of LSAM: docs/horovod.md; they win over LSAM_* variables and LSAM_CONFIG.

    Raises:
        InputError: an option is wrong, or Adasum is asked for.
    """
    options = resolve(lsam)
    if op == hvd.Adasum:
        raise InputError(
            "op: expected Average or Sum, found Adasum: it combines the steps of ranks that share one set of "
            "parameters, and LSAM's ranks each have their own"
        )
    rank = session.comm.rank
    own_set = process_set is not hvd.global_process_set
    if own_set and options.group_size > 1:
        raise InputError(f"group_size: expected 1 with a process_set, found {options.group_size}")
    if not own_set and options.group_size > 1:
        process_set, own_set = group_sets(hvd, options.group_size, session.comm), True
    ranks = [rank]
    if own_set and process_set.included():
        ranks = list(range(session.comm.size)) if process_set is hvd.global_process_set else list(process_set.ranks)
    reducer = HorovodOptimizer(
        optimizer,
        named_parameters=named_parameters,
        compression=compression,
        backward_passes_per_step=backward_passes_per_step,
        op=op,
        gradient_predivide_factor=gradient_predivide_factor,
        num_groups=num_groups,
        groups=groups,
        sparse_as_dense=sparse_as_dense,
        process_set=process_set if len(ranks) > 1 else _Alone(),
    )
    # Of the optimizer's own class too, as Horovod's: scripts and schedulers may ask.
    kind = type(type(optimizer).__name__, (LsamOptimizer, type(optimizer)), {"__init__": LsamOptimizer.__init__})
    made: LsamOptimizer = kind(optimizer, reducer, ranks, options)
    return made


# Horovod asks whether an optimizer's module is that of `DistributedOptimizer` to tell its own optimizers from torch's.
DistributedOptimizer.__module__ = "horovod.torch.optimizer"
