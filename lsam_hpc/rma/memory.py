"""Checks the free shared memory of a node before MPI allocates windows there: without it a rank dies of SIGBUS."""

from __future__ import annotations

import os

from mpi4py import MPI

from lsam_hpc.errors import InputError
from lsam_hpc.rma.collective import raise_on_all

SHARED = "/dev/shm"  # Open MPI and MPICH put the windows of ranks that share a node here
_SLACK = 1 << 16  # bytes per rank for rounding up to pages and for MPI's own data of a few windows


def check_shared_memory(comm: MPI.Intracomm, nbytes: int, what: str) -> None:
    """Raise InputError on all ranks if a node's /dev/shm has too little free space for new windows; collective.

    MPI sets the size of its files there but does not reserve the space: if it is missing, the first store to a window
    kills the rank with SIGBUS. A rank that is alone on its node gets ordinary memory from both MPIs, so nothing is
    checked there, nor on a system without /dev/shm.

    Args:
        comm: the ranks that will create the windows.
        nbytes: size in bytes of this rank's parts of the windows.
        what: purpose of the windows, for the message, as in "the center".

    Raises:
        InputError: names a host, the bytes that its ranks need together, and the free bytes.
    """
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    needed: int = node.allreduce(nbytes + _SLACK)
    # One rank asks, so that all ranks of a node report the same number.
    free: int | None = node.bcast(_free() if node.rank == 0 and node.size > 1 else None)
    ranks = node.size
    node.Free()

    def check() -> None:
        if free is not None and free < needed:
            raise InputError(
                f"{SHARED} on {MPI.Get_processor_name()}: expected {_megabytes(needed)} free "
                f"for {what} of {ranks} ranks, found {_megabytes(free)}"
            )

    raise_on_all(comm, check)


def _free() -> int | None:
    try:
        status = os.statvfs(SHARED)
    except FileNotFoundError:
        return None
    return status.f_bavail * status.f_frsize


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB"
