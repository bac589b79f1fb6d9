"""Times how ranks join a running job by MPI_Comm_spawn: `mpirun -n 2 python docs/benchmarks/spawn.py`.

Two ranks join; all then make a window, and each adds 1 to 1,000 numbers of each rank. Rank 0 prints the seconds of each
part; an add that is not exact is an error.
"""

import sys
import time

import numpy as np
from mpi4py import MPI

SIZE, JOINING = 1000, 2


def add(comm: MPI.Intracomm) -> None:
    """Make a window on all ranks, and add to each of them."""
    window = MPI.Win.Allocate(8 * SIZE, 8, comm=comm)
    numbers = np.asarray(window.tomemory()).view(np.float64)
    numbers[:] = 0
    window.Lock_all(MPI.MODE_NOCHECK)
    window.Sync()
    comm.Barrier()
    for rank in range(comm.size):
        window.Accumulate((np.ones(SIZE), MPI.DOUBLE), rank, (0, SIZE, MPI.DOUBLE), MPI.SUM)
    window.Flush_all()
    comm.Barrier()
    window.Sync()
    assert (numbers == comm.size).all()
    window.Unlock_all()
    window.Free()


def main() -> None:
    """Join, or let others join."""
    times = [time.monotonic()]
    parent = MPI.Comm.Get_parent()
    joining = parent != MPI.COMM_NULL
    between = parent if joining else MPI.COMM_WORLD.Spawn(sys.executable, [__file__], maxprocs=JOINING)
    times.append(time.monotonic())
    comm = between.Merge(high=joining)
    times.append(time.monotonic())
    add(comm)
    times.append(time.monotonic())
    if comm.rank == 0:
        spawn, merge, window = np.diff(times)
        print(f"{comm.size} ranks: spawn {spawn:.2f} s, merge {merge:.2f} s, window and adds {window:.2f} s")
    comm.Free()
    between.Disconnect()


main()
