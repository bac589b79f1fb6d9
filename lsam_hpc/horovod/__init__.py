"""`import lsam_hpc.horovod as hvd`: all names of `horovod.torch`, with LSAM in place of `DistributedOptimizer`.

Torch, Horovod and MPI are imported when the first name is used.
"""

from __future__ import annotations

import importlib
import multiprocessing
from typing import Any

from lsam_hpc.util.preflight import needed_transports


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if multiprocessing.parent_process() is not None:
        # A data loader's worker imports the script again, but is not a rank.
        importlib.import_module("mpi4py").rc.initialize = False
    with needed_transports():
        # MPI before Horovod: otherwise mpi4py would use the MPI library that Horovod has loaded.
        importlib.import_module("mpi4py.MPI")
    return getattr(importlib.import_module("lsam_hpc.horovod.api"), name)


def __dir__() -> list[str]:
    return list(importlib.import_module("lsam_hpc.horovod.api").__all__)
