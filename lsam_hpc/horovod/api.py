"""The names of `horovod.torch`, some of them replaced by LSAM's."""

from __future__ import annotations

from typing import Any

import horovod.torch as real
import horovod.torch.elastic.state as real_elastic
import horovod.torch.functions as real_functions
import horovod.torch.optimizer as real_optimizer

from lsam_hpc.horovod.broadcasts import broadcast_optimizer_state, broadcast_parameters
from lsam_hpc.horovod.factory import DistributedOptimizer
from lsam_hpc.horovod.handlers import register
from lsam_hpc.horovod.session import session
from lsam_hpc.horovod.start import init, shutdown

REPLACED: dict[str, Any] = {
    "DistributedOptimizer": DistributedOptimizer,
    "broadcast_optimizer_state": broadcast_optimizer_state,
    "broadcast_parameters": broadcast_parameters,
    "init": init,
    "shutdown": shutdown,
}
__all__ = sorted({name for name in dir(real) if not name.startswith("_")} | REPLACED.keys())
globals().update({name: getattr(real, name) for name in __all__ if name not in REPLACED})

# hvd.elastic must use LSAM's functions with `lsam wrap` and with the changed import alike.
register()
real_elastic.broadcast_parameters = broadcast_parameters
real_elastic.broadcast_optimizer_state = broadcast_optimizer_state


def install(name: str) -> None:
    """Replace names of `horovod.torch` itself, for scripts that import it, and write logs.

    Args:
        name: of the run; part of its directory's default name.
    """
    session.name, session.logs = name, True
    for replaced, value in REPLACED.items():
        setattr(real, replaced, value)
    real_optimizer.DistributedOptimizer = DistributedOptimizer
    for function in ("broadcast_optimizer_state", "broadcast_parameters"):
        setattr(real_functions, function, REPLACED[function])
