"""Scripts written for torchrun, started by mpirun or srun."""

from __future__ import annotations

import os
import socket

from lsam_hpc.util.launched import on_node


def set_torchrun_environment() -> None:
    """Set the environment variables that torchrun sets, from MPI, so that `init_process_group` finds all ranks.

    RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT, of which the last two are rank 0's host
    and a free port on it. Collective. Variables that are set already are replaced.
    """
    from mpi4py import MPI

    import lsam_hpc.distributed  # noqa: F401 - starts MPI, only when this is called

    comm = MPI.COMM_WORLD
    with socket.socket() as free:
        free.bind(("", 0))
        host, port = comm.bcast((socket.gethostname(), free.getsockname()[1]))
    local_rank, local_size = on_node()
    names = {"RANK": comm.rank, "WORLD_SIZE": comm.size, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": local_size}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR=host, MASTER_PORT=str(port))
