"""The simulator against jobs on two hosts of one machine, joined by a cable whose bandwidth tc limits.

    python -m tests.simulate.two_hosts --rate 1gbit --np 2,4

It needs root, as tests/helpers/hosts.py does. Latency, rate and passes of the network are measured with one rank on
each host, at work alone; the rest as in `lsam bench simulate`.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from lsam_hpc.tools import bench_simulate as bench
from lsam_hpc.tools.bench_base import check_out, number

from lsam_hpc.arguments import Parser
from lsam_hpc.errors import InputError
from lsam_hpc.simulate.costs import ADD_FLUSHES, ADD_ROUNDS
from lsam_hpc.simulate.describe import Machine
from lsam_hpc.text import columns
from tests.helpers import mpis
from tests.helpers.hosts import available, limit, two_hosts

SMALL = 1000  # parameters whose bytes take no time
REST = 1.0  # seconds for which the other rank sleeps while one exchanges


def main(argv: Sequence[str]) -> int:
    """Run the jobs, print simulated against measured; return the exit code."""
    parser = Parser(prog="two_hosts", description=__doc__)
    parser.add_argument("--rate", default="1gbit", help="of the cable, as tc writes it")
    parser.add_argument("--np", default="2,4")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", metavar="FILE", help="write the numbers there")
    given = parser.parse_args(argv)
    counts = bench.counts(given.np)
    if any(count % 2 for count in counts):
        raise InputError(f"--np: expected even numbers of ranks, half of them for each host, found {given.np}")
    bench.check(given.seconds)
    check_out(given.json)
    mpi = open_mpi()
    rows = []
    with two_hosts() as hosts:
        limit(hosts, given.rate)

        def start(ranks, words):
            return hosts.across(mpi, ranks).command(ranks, mpi.python, "-m", "mpi4py", *words)

        cases = bench.CASES[:2]  # balanced, and with a slow rank: their parts are the same
        parts = bench.measure(bench.alike(cases[0]), given.seconds)
        parts = replace(parts, machine=network(start, parts.machine, cases[0].parameters))
        for case in cases:
            for count in counts:
                real = bench.run(start, count, bench.loop(case, given.seconds, bench.PERIOD))
                guess = bench.predict(case, parts, count, given.seconds, nodes=2)
                rows.append(bench.row(f"{case.name}, {given.rate}", count, real, guess))
                print(*map(number, rows[-1].values()), sep=", ", file=sys.stderr, flush=True)
    print(columns([tuple(rows[0]), *(tuple(map(number, row.values())) for row in rows)]))
    if given.json:
        Path(given.json).write_text(json.dumps({"rows": rows, "parts": parts.numbers()}, indent=1) + "\n")
    return 0


def open_mpi() -> mpis.Mpi:
    """Return the Open MPI that jobs on two hosts are started with.

    Raises:
        InputError: there is none, or there cannot be two hosts.
    """
    if why := available():
        raise InputError(f"two hosts: {why}")
    found = mpis.available().get("openmpi")
    if found is None:
        raise InputError(f"two hosts: expected Open MPI, found {', '.join(mpis.available())}")
    return found


def one_line(program: Callable[[Sequence[str]], int]) -> int:
    """Return the exit code of a program whose bad input is one line."""
    try:
        return program(sys.argv[1:])
    except (InputError, ConnectionError) as error:
        print(error, file=sys.stderr)
        return 2


def network(start, machine: Machine, parameters: int) -> Machine:
    """Return the machine with the network that one rank on each of two hosts finds."""
    times = {}
    for size in (SMALL, parameters):
        what = {"what": "exchange", "parameters": size, "repeats": 5, "products": 1, "rest": REST}
        times[size] = bench.run(start, 2, what)[0]
    small, big = times[SMALL], times[parameters]
    half = 4 * parameters / 2  # one shard is on the other host
    local = half / machine.copy
    rate = half / max(1e-6, big["read"] - small["read"] - local)
    passes = max(1.0, (big["add"] - small["add"] - local) * rate / half)
    latency = small["read"] / 2
    answers = ADD_FLUSHES + (ADD_ROUNDS if passes > 1 else 0)
    helping = max(0.0, small["add"] / answers - latency) / 2
    return replace(machine, rank_rate=rate, nic=rate, latency=latency, help=helping, add_passes=passes)


if __name__ == "__main__":
    sys.exit(one_line(main))
