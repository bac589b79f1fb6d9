"""Measures the adds per second of ranks on two hosts that do nothing else.

    python -m tests.simulate.together --rate 1gbit     # as root, see tests/helpers/hosts.py

docs/explanation/scaling.md uses it to explain why the simulator is too fast on two hosts.
"""

import sys
import time
from collections.abc import Sequence

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.util.arguments import Parser
from tests.helpers.hosts import limit, two_hosts
from tests.simulate.two_hosts import one_line, open_mpi

RANKS, SIZE, SECONDS = 4, 1_000_000, 5.0


def main(argv: Sequence[str]) -> int:
    """Run the job on two hosts and print what it says; return the exit code."""
    parser = Parser(prog="together", description=__doc__)
    parser.add_argument("--rate", default="1gbit", help="bandwidth of the cable, in the notation of tc")
    parser.add_argument("--job", action="store_true", help="be a rank of the job")
    args = parser.parse_args(argv)
    if args.job:
        job()
        return 0
    mpi = open_mpi()
    with two_hosts() as hosts:
        limit(hosts, args.rate)
        words = (mpi.python, "-m", "mpi4py", "-m", "tests.simulate.together", "--job")
        result = hosts.run(mpi, RANKS, *words, timeout=120)
    if result.returncode:
        raise InputError(f"together: expected exit code 0 of {RANKS} ranks, found: {result.stderr.strip()[-300:]}")
    print(result.stdout.strip())
    return 0


def job():
    from mpi4py import MPI

    from lsam_hpc import rma

    comm = MPI.COMM_WORLD
    with rma.ProgressThread(comm), rma.Center(comm, SIZE) as center:
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
    sys.exit(one_line(main))
