"""Landscape programs on several ranks: MPI only where a launcher started them, and one rank that speaks."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.trajectory.provenance import launcher

if TYPE_CHECKING:
    from mpi4py import MPI

T = TypeVar("T")


class Ranks:
    """The ranks that share a program's points; one, without MPI, unless mpirun or srun started it."""

    def __init__(self) -> None:
        self.comm: MPI.Intracomm | None = None
        if launcher()[0] != "none":
            from mpi4py import MPI

            self.comm = MPI.COMM_WORLD

    @property
    def first(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.comm is None or self.comm.rank == 0

    def agree(self, function: Callable[[], T]) -> T:
        """Run a function on every rank; if it raises InputError on any, raise it on all."""
        if self.comm is None:
            return function()
        from lsam_hpc.rma import agree

        return agree(self.comm, function)

    def once(self, function: Callable[[], T]) -> T:
        """Run a function on the first rank, and return what it returned, or raise its InputError, on all."""
        if self.comm is None:
            return function()
        from lsam_hpc.rma import barrier

        found: Any = None
        error: str | None = None
        if self.first:
            try:
                found = function()
            except InputError as raised:
                error = str(raised)
        barrier(self.comm)  # the others wait without taking a core
        error, found = self.comm.bcast((error, found))
        if error is not None:
            raise InputError(error, everywhere=True)
        result: T = found
        return result


def add_ranks(group: argparse.ArgumentParser) -> None:
    """Add the options of programs whose work is shared out over ranks."""
    group.add_argument("--threads", type=int, default=1, help="of each rank (default: 1, which gives the same bits for "
                       "any number of ranks on the same kind of machine; use mpirun for more cores)")  # fmt: skip
    group.add_argument("--quiet", action="store_true", help="show no progress")


def set_threads(given: argparse.Namespace) -> None:
    """Let torch use as many threads as the options say."""
    if given.threads < 1:
        raise InputError(f"--threads: expected 1 or more, found {given.threads}")
    torch.set_num_threads(given.threads)


def about(given: argparse.Namespace, objective: Objective) -> dict[str, Any]:
    """Return what an objective's values depend on, for the options of a folder of finished points."""
    data = hashlib.sha256()
    for inputs, targets in objective.batches:
        for tensor in (inputs, targets):
            data.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return {
        "model": given.model or "the run's", "loss": given.loss or "cross-entropy", "samples": objective.samples,
        "batches": len(objective.batches), "data": data.hexdigest()[:16], "dtype": str(objective.dtype),
        "device": objective.device.type, "threads": given.threads,
    }  # fmt: skip


def digest(*vectors: NDArray[Any]) -> str:
    """Return a short text that tells vectors from others."""
    found = hashlib.sha256()
    for vector in vectors:
        found.update(np.ascontiguousarray(vector).tobytes())
    return found.hexdigest()[:16]
