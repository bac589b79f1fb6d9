"""What the drop-in knows of this process: its communicator and its optimizers."""

from __future__ import annotations

import atexit
import os
import sys
import time
from typing import Protocol

from mpi4py import MPI


class Chained(Protocol):
    """An optimizer that may have a chain."""

    def close(self) -> list[int]:
        """End the chain and return the ranks that were lost."""


FORWARD = 0.3  # s in which the launcher passes on what this rank said last; MPICH's drops it when a job aborts


class Session:
    """The process's part of a job."""

    def __init__(self) -> None:
        self.comm: MPI.Intracomm = MPI.COMM_WORLD
        self.started = False  # init was called
        self.failed = False  # this rank leaves by itself: the others are not on their way to a collective call
        self.name = "horovod"  # of the run directory, where none is named
        self.logs = False  # keep logs also if no directory is named
        self.wrapped = False  # an optimizer was made
        self.optimizers: list[Chained] = []

    def close_first(self) -> None:
        """Have the chains end before all that was told of the process's end so far: logs, helper threads, Horovod."""
        atexit.unregister(self.close)
        atexit.register(self.close)

    def close(self) -> None:
        """End all chains; collective."""
        if self.failed:
            return
        lost: list[int] = []
        for optimizer in self.optimizers:
            lost += optimizer.close()
        self.optimizers.clear()
        if lost:
            sys.stdout.flush()
            os._exit(4)  # MPI_Finalize would wait for the dead

    def abort(self, code: int) -> None:
        """End the job with this code, if there are other ranks."""
        self.failed = True
        sys.stdout.flush()
        sys.stderr.flush()
        if MPI.Is_initialized() and not MPI.Is_finalized() and MPI.COMM_WORLD.size > 1:
            time.sleep(FORWARD)
            MPI.COMM_WORLD.Abort(code)


session = Session()
