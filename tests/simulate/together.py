"""How many adds a second ranks on two hosts manage together, if they do nothing else.

    python -m tests.simulate.together --rate 1gbit     # as root, see tests/helpers/hosts.py

docs/scaling.md tells of it where the simulator is too fast.
"""

import argparse
import subprocess
import sys
import time

import numpy as np

from tests.helpers import mpis
from tests.helpers.hosts import available, two_hosts

RANKS, SIZE, SECONDS = 4, 1_000_000, 5.0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", default="1gbit", help="of the cable, as tc writes it")
    parser.add_argument("--job", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        job()
        return
    if why := available():
        sys.exit(f"no two hosts: {why}")
    mpi = mpis.available()["openmpi"]
    with two_hosts() as hosts:
        for words in hosts.enter:
            limit = [*words, "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", given.rate]
            subprocess.run([*limit, "burst", "256kb", "latency", "50ms"], check=True)
        words = (mpi.python, "-m", "mpi4py", "-m", "tests.simulate.together", "--job")
        found = hosts.run(mpi, RANKS, *words, timeout=120)
        print(found.stdout.strip() or found.stderr[-300:])


def job():
    from mpi4py import MPI

    from lsam_hpc import rma

    comm = MPI.COMM_WORLD
    with rma.Progress(comm), rma.Center(comm, SIZE) as center:
        delta = np.full(SIZE, 1e-6, np.float32)
        for busy in (1, 2, 4):
            rma.barrier(comm)
            began, adds = time.perf_counter(), 0
            while comm.rank < busy and time.perf_counter() - began < SECONDS:
                center.add(delta)
                adds += 1
            rate = adds / (time.perf_counter() - began)
            rma.barrier(comm)
            total = comm.allreduce(rate if comm.rank < busy else 0.0)
            if comm.rank == 0:
                print(f"{busy} of {comm.size} ranks: {total:.1f} adds/s together", flush=True)


if __name__ == "__main__":
    main()
