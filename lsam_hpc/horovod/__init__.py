"""`import lsam_hpc.horovod as hvd`: all that `horovod.torch` has, with an LSAM in place of `DistributedOptimizer`.

Torch, Horovod and MPI are loaded when the first of its names is used.
"""

from __future__ import annotations

import importlib
import multiprocessing
from typing import Any

from lsam_hpc.preflight import needed_transports


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if multiprocessing.parent_process() is not None:
        # A data loader's worker that runs the script again is no rank.
        importlib.import_module("mpi4py").rc.initialize = False
    with needed_transports():
        # MPI first: mpi4py would take an MPI library that Horovod has loaded for its own.
        importlib.import_module("mpi4py.MPI")
    return getattr(importlib.import_module("lsam_hpc.horovod.api"), name)


def __dir__() -> list[str]:
    return list(importlib.import_module("lsam_hpc.horovod.api").__all__)
