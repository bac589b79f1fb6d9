"""Whether a node's shared memory has room for windows, before MPI takes it and a rank dies of a bus error."""

from __future__ import annotations

import os

from mpi4py import MPI

from lsam_hpc.errors import InputError
from lsam_hpc.rma.collective import agree

SHARED = "/dev/shm"  # where Open MPI and MPICH put the windows of ranks that share a node
_SLACK = 1 << 16  # bytes per rank: whole pages, and what MPI keeps beside a few windows


def check_shared_memory(comm: MPI.Intracomm, nbytes: int, what: str) -> None:
    """Raise InputError on all ranks if a node's /dev/shm has too little free space for windows to be made; collective.

    MPI sets the size of its files there but does not reserve it: without room, the first store to a window kills the
    rank with SIGBUS. A rank that is alone on its node gets ordinary memory from both MPIs, so nothing is checked there,
    nor where there is no /dev/shm.

    Args:
        comm: the ranks that will make the windows.
        nbytes: of this rank's parts of the windows.
        what: they are for, as in "the center".

    Raises:
        InputError: naming a host, what its ranks need together, and what is free.
    """
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    needed: int = node.allreduce(nbytes + _SLACK)
    # Asked by one rank, so that a node's ranks say the same.
    free: int | None = node.bcast(_free() if node.rank == 0 and node.size > 1 else None)
    ranks = node.size
    node.Free()

    def check() -> None:
        if free is not None and free < needed:
            raise InputError(
                f"{SHARED} on {MPI.Get_processor_name()}: expected {_megabytes(needed)} free "
                f"for {what} of {ranks} ranks, found {_megabytes(free)}"
            )

    agree(comm, check)


def _free() -> int | None:
    try:
        found = os.statvfs(SHARED)
    except FileNotFoundError:
        return None
    return found.f_bavail * found.f_frsize


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:.1f} MB"
