"""Runs landscape programs on several ranks: MPI is used only under a launcher, and only rank 0 prints."""

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
    """The ranks of a program; a single one, without MPI, unless mpirun or srun started it."""

    def __init__(self) -> None:
        self.comm: MPI.Intracomm | None = None
        if launcher()[0] != "none":
            from mpi4py import MPI

            self.comm = MPI.COMM_WORLD

    @property
    def is_first(self) -> bool:
        """True on rank 0, which prints and writes."""
        return self.comm is None or self.comm.rank == 0

    def raise_on_all(self, function: Callable[[], T]) -> T:
        """Run a function on every rank; if it raises InputError on any, raise it on all."""
        if self.comm is None:
            return function()
        from lsam_hpc.rma import raise_on_all

        return raise_on_all(self.comm, function)

    def on_first(self, function: Callable[[], T]) -> T:
        """Run a function on rank 0; return its result, or raise its InputError, on all ranks."""
        if self.comm is None:
            return function()
        from lsam_hpc.rma import barrier

        outcome: Any = None
        error: str | None = None
        if self.is_first:
            try:
                outcome = function()
            except InputError as raised:
                error = str(raised)
        barrier(self.comm)  # the other ranks wait here without using a core
        error, outcome = self.comm.bcast((error, outcome))
        if error is not None:
            raise InputError(error, everywhere=True)
        result: T = outcome
        return result


def add_ranks(group: argparse.ArgumentParser) -> None:
    """Add the options of programs that distribute their work over ranks."""
    group.add_argument(
        "--threads",
        type=int,
        default=1,
        help="threads of each rank (default: 1, which gives the same bits for any number of ranks on the same kind of "
        "machine; use mpirun for more cores)",
    )


def set_threads(args: argparse.Namespace) -> None:
    """Set torch's number of threads from the options."""
    if args.threads < 1:
        raise InputError(f"--threads: expected 1 or more, found {args.threads}")
    torch.set_num_threads(args.threads)


def objective_options(args: argparse.Namespace, objective: Objective) -> dict[str, Any]:
    """Return the options and data that an objective's values depend on, to store with the values.

    The split is None for the data of `--make-batches`, which has none.
    """
    data = hashlib.sha256()
    for inputs, targets in objective.batches:
        for tensor in (inputs, targets):
            data.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return {
        "model": args.make_model or args.model or "the run's",
        "loss": getattr(args, "loss", None) or "cross-entropy",
        "split": None if args.make_batches else args.split,
        "samples": objective.samples,
        "batches": len(objective.batches),
        "data": data.hexdigest()[:16],
        "dtype": str(objective.dtype),
        "device": objective.device.type,
        "threads": args.threads,
    }


def digest(*vectors: NDArray[Any]) -> str:
    """Return a short hash of vectors."""
    hasher = hashlib.sha256()
    for vector in vectors:
        hasher.update(np.ascontiguousarray(vector).tobytes())
    return hasher.hexdigest()[:16]
