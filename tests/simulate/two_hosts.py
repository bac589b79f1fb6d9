"""Compares the simulator with jobs on two hosts of one machine, joined by a cable whose bandwidth tc limits.

    python -m tests.simulate.two_hosts --rate 1gbit --np 2,4

It needs root, as tests/helpers/hosts.py does. Latency, rate and passes of the network are measured with one rank on
each host, of which one works; the rest as in `lsam bench simulate`.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from lsam_hpc.errors import InputError
from lsam_hpc.simulate.costs import ADD_FLUSHES, ADD_ROUNDS
from lsam_hpc.simulate.describe import Machine
from lsam_hpc.tools.bench import simulate as bench
from lsam_hpc.tools.bench.base import check_out, number
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.text import columns
from tests.helpers import mpis
from tests.helpers.hosts import available, limit, two_hosts

SMALL = 1000  # parameters, so few that their transfer takes no time
REST = 1.0  # seconds for which the other rank sleeps during an exchange


def main(argv: Sequence[str]) -> int:
    """Run the jobs, and print simulated and measured numbers; return the exit code."""
    parser = Parser(prog="two_hosts", description=__doc__)
    parser.add_argument("--rate", default="1gbit", help="bandwidth of the cable, in the notation of tc")
    parser.add_argument("--np", default="2,4")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", metavar="FILE", help="write the numbers to FILE")
    args = parser.parse_args(argv)
    counts = bench.counts(args.np)
    if any(count % 2 for count in counts):
        raise InputError(f"--np: expected even numbers of ranks, half of them for each host, found {args.np}")
    bench.check_seconds(args.seconds)
    check_out(args.json)
    mpi = open_mpi()
    rows = []
    with two_hosts() as hosts:
        limit(hosts, args.rate)

        def start(ranks, words):
            return hosts.across(mpi, ranks).command(ranks, mpi.python, "-m", "mpi4py", *words)

        cases = bench.CASES[:2]  # balanced, and with a slow rank: they have the same parts
        parts = bench.measure(bench.balanced(cases[0]), args.seconds)
        parts = replace(parts, machine=network(start, parts.machine, cases[0].parameters))
        for case in cases:
            for count in counts:
                real = bench.run(start, count, bench.loop(case, args.seconds, bench.PERIOD))
                guess = bench.predict(case, parts, count, args.seconds, nodes=2)
                rows.append(bench.row(f"{case.name}, {args.rate}", count, real, guess))
                print(*map(number, rows[-1].values()), sep=", ", file=sys.stderr, flush=True)
    print(columns([tuple(rows[0]), *(tuple(map(number, row.values())) for row in rows)]))
    if args.json:
        Path(args.json).write_text(json.dumps({"rows": rows, "parts": parts.numbers()}, indent=1) + "\n")
    return 0


def open_mpi() -> mpis.Mpi:
    """Return the Open MPI that starts jobs on two hosts.

    Raises:
        InputError: Open MPI is not installed, or two hosts cannot be set up.
    """
    if why := available():
        raise InputError(f"two hosts: {why}")
    mpi = mpis.available().get("openmpi")
    if mpi is None:
        raise InputError(f"two hosts: expected Open MPI, found {', '.join(mpis.available())}")
    return mpi


def one_line(program: Callable[[Sequence[str]], int]) -> int:
    """Run a program, print its errors in one line, and return its exit code."""
    try:
        return program(sys.argv[1:])
    except (InputError, ConnectionError) as error:
        print(error, file=sys.stderr)
        return 2


def network(start, machine: Machine, parameters: int) -> Machine:
    """Return the machine with the network as measured with one rank on each of two hosts."""
    times = {}
    for size in (SMALL, parameters):
        arguments = {"what": "exchange", "parameters": size, "repeats": 5, "products": 1, "rest": REST}
        times[size] = bench.run(start, 2, arguments)[0]
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
