"""For how many looks of the helper an add waits, when the owners are on another host and outside MPI.

    python -m tests.simulate.answers            # as root, see tests/helpers/hosts.py; LSAM_TEST_MPICH for both MPIs

`lsam_hpc.simulate.costs` has its ADD_FLUSHES and ADD_ROUNDS from here.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.helpers import mpis
from tests.helpers.hosts import available, two_hosts

LOOK = 0.05  # seconds between two looks of the helper thread; latency and bytes are nothing beside it
SIZE, REPEATS = 4000, 9


def main():
    if why := available():
        sys.exit(f"no two hosts: {why}")
    with two_hosts() as hosts, tempfile.TemporaryDirectory() as folder:
        for name, mpi in mpis.available().items():
            for ranks in (2, 4, 8):
                done = Path(folder) / f"{name}-{ranks}"
                words = (mpi.python, "-m", "mpi4py", "-m", "tests.simulate.answers", str(done))
                found = hosts.run(mpi, ranks, *words, timeout=120)
                print(name, ranks, "ranks:", found.stdout.strip() or found.stderr[-300:], flush=True)


def job(done):
    from mpi4py import MPI

    from lsam_hpc import rma

    comm = MPI.COMM_WORLD
    with rma.Progress(comm, LOOK):
        center, ones = rma.Center(comm, SIZE), np.ones(SIZE, np.float32)
        center.add(ones)
        rma.barrier(comm)
        while comm.rank and not done.exists():
            time.sleep(LOOK)
        if comm.rank == 0:
            seconds = []
            for _ in range(REPEATS):
                began = time.perf_counter()
                center.add(ones)
                seconds.append(time.perf_counter() - began)
            print(f"an add waits for {statistics.median(seconds) / LOOK:.1f} looks")
            done.touch()
        center.close()


if __name__ == "__main__":
    job(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
