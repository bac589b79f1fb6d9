"""Measures how many polls of the helper thread an add waits for, with the owners on another host and outside MPI.

    python -m tests.simulate.answers            # as root, see tests/helpers/hosts.py; LSAM_TEST_MPICH for both MPIs

ADD_FLUSHES and ADD_ROUNDS of `lsam_hpc.simulate.costs` are from this program.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.helpers import mpis
from tests.helpers.hosts import available, two_hosts

POLL = 0.05  # seconds between two polls of the helper thread, far above latency and transfer time
SIZE, REPEATS = 4000, 9


def main():
    if why := available():
        sys.exit(f"no two hosts: {why}")
    with two_hosts() as hosts, tempfile.TemporaryDirectory() as folder:
        for name, mpi in mpis.available().items():
            for ranks in (2, 4, 8):
                done = Path(folder) / f"{name}-{ranks}"
                words = (mpi.python, "-m", "mpi4py", "-m", "tests.simulate.answers", str(done))
                result = hosts.run(mpi, ranks, *words, timeout=120)
                print(name, ranks, "ranks:", result.stdout.strip() or result.stderr[-300:], flush=True)


def job(done):
    from mpi4py import MPI

    from lsam_hpc import rma

    comm = MPI.COMM_WORLD
    with rma.ProgressThread(comm, POLL):
        center, ones = rma.Center(comm, SIZE), np.ones(SIZE, np.float32)
        center.add(ones)
        rma.barrier(comm)
        while comm.rank and not done.exists():
            time.sleep(POLL)
        if comm.rank == 0:
            seconds = []
            for _ in range(REPEATS):
                began = time.perf_counter()
                center.add(ones)
                seconds.append(time.perf_counter() - began)
            print(f"an add waits for {statistics.median(seconds) / POLL:.1f} polls")
            done.touch()
        center.close()


if __name__ == "__main__":
    job(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
