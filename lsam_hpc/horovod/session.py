"""State of this process for the Horovod drop-in: its communicator and its optimizers."""

from __future__ import annotations

import atexit
import os
import sys
import time
from typing import Protocol

from mpi4py import MPI


class Chained(Protocol):
    """An optimizer with or without a chain."""

    def close(self) -> list[int]:
        """End the chain and return the failed ranks."""


FORWARD = 0.3  # s for the launcher to forward the last output; MPICH's launcher drops it when a job aborts


class Session:
    """One process of a job."""

    def __init__(self) -> None:
        self.comm: MPI.Intracomm = MPI.COMM_WORLD
        self.started = False  # init was called
        self.failed = False  # this rank ends alone: the others will not join a collective call
        self.name = "horovod"  # of the run directory, where none is named
        self.logs = False  # keep logs also if no directory is named
        self.wrapped = False  # an optimizer was made
        self.optimizers: list[Chained] = []

    def close_first(self) -> None:
        """Close the chains before all exit handlers registered so far: logs, helper threads, Horovod."""
        atexit.unregister(self.close)
        atexit.register(self.close)

    def close(self) -> None:
        """Close all chains; collective."""
        if self.failed:
            return
        failed_ranks: list[int] = []
        for optimizer in self.optimizers:
            failed_ranks += optimizer.close()
        self.optimizers.clear()
        if failed_ranks:
            sys.stdout.flush()
            os._exit(4)  # MPI_Finalize would wait for the failed ranks

    def abort(self, code: int) -> None:
        """Abort the job with an exit code, if it has other ranks."""
        self.failed = True
        sys.stdout.flush()
        sys.stderr.flush()
        if MPI.Is_initialized() and not MPI.Is_finalized() and MPI.COMM_WORLD.size > 1:
            time.sleep(FORWARD)
            MPI.COMM_WORLD.Abort(code)

    def replaced(self, message: str) -> None:
        """End the job at once: another one writes to its run directory."""
        print(f"lsam: {message}", file=sys.stderr, flush=True)
        self.comm.Abort(2)


session = Session()
