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
    """Stands for a process set of one rank, whose gradients Horovod must not average."""

    def included(self) -> bool:
        """Return False, so that Horovod sends nothing."""
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
    """Return an LSAM optimizer, with the signature of `horovod.torch.DistributedOptimizer`.

    Each rank is one chain, and its gradients are not averaged. With a process set or `group_size`, the ranks of a group
    form one chain, and Horovod averages their gradients in the backward pass.

    Args:
        optimizer: the optimizer that takes the steps.
        named_parameters: as Horovod's; the names go into the log.
        compression: of the gradients, within a group.
        backward_passes_per_step: backward passes before each `step`.
        op: `Average` (default) or `Sum`, within a group; not `Adasum`.
        gradient_predivide_factor: within a group.
        num_groups: within a group.
        groups: groups of parameters, within a group of ranks.
        sparse_as_dense: within a group.
        process_set: this rank's group. Default: `group_size` neighbouring ranks, or this rank alone.
        **lsam: options of LSAM, see docs/reference/horovod.md; they override LSAM_* variables and LSAM_CONFIG.

    Raises:
        InputError: an option is wrong, or `op` is Adasum.
    """
    options = resolve(lsam)
    if op == hvd.Adasum:
        raise InputError(
            "op: expected Average or Sum, found Adasum: it combines the steps of ranks that share one set of "
            "parameters, and LSAM's ranks each have their own"
        )
    rank = session.comm.rank
    grouped = process_set is not hvd.global_process_set
    if grouped and options.group_size > 1:
        raise InputError(f"group_size: expected 1 with a process_set, found {options.group_size}")
    if not grouped and options.group_size > 1:
        process_set, grouped = group_sets(hvd, options.group_size, session.comm), True
    ranks = [rank]
    if grouped and process_set.included():
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
    # A subclass of the optimizer's class, as in Horovod: scripts and schedulers may call isinstance.
    kind = type(type(optimizer).__name__, (LsamOptimizer, type(optimizer)), {"__init__": LsamOptimizer.__init__})
    made: LsamOptimizer = kind(optimizer, reducer, ranks, options)
    return made


# Horovod recognizes its own optimizers by the module of `DistributedOptimizer`.
DistributedOptimizer.__module__ = "horovod.torch.optimizer"
