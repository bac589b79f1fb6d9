"""The simulator against jobs on two hosts of one machine, joined by a cable whose bandwidth tc limits.

    python -m tests.simulate.two_hosts --rate 1gbit --np 2,4

It needs root, as tests/helpers/hosts.py does. Latency, rate and passes of the network are measured with one rank on
each host, at work alone; the rest as in `lsam bench simulate`.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from lsam_hpc.tools import bench_simulate as bench
from lsam_hpc.tools.bench_base import number

from lsam_hpc.simulate.costs import ADD_FLUSHES, ADD_ROUNDS
from lsam_hpc.simulate.describe import Machine
from lsam_hpc.text import columns
from tests.helpers import mpis
from tests.helpers.hosts import available, two_hosts

SMALL = 1000  # parameters whose bytes take no time
REST = 1.0  # seconds for which the other rank sleeps while one exchanges


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", default="1gbit", help="of the cable, as tc writes it")
    parser.add_argument("--np", default="2,4")
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", metavar="FILE", help="write the numbers there")
    given = parser.parse_args()
    if why := available():
        sys.exit(f"no two hosts: {why}")
    mpi = mpis.available()["openmpi"]
    rows = []
    with two_hosts() as hosts:
        for words in hosts.enter:
            limit = [*words, "tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", "rate", given.rate]
            subprocess.run([*limit, "burst", "256kb", "latency", "50ms"], check=True)

        def start(ranks, words):
            return hosts.across(mpi, ranks).command(ranks, mpi.python, "-m", "mpi4py", *words)

        cases = bench.CASES[:2]  # balanced, and with a slow rank: their parts are the same
        parts = bench.measure(bench.alike(cases[0]), given.seconds)
        parts = replace(parts, machine=network(start, parts.machine, cases[0].parameters))
        for case in cases:
            for count in map(int, given.np.split(",")):
                real = bench.run(start, count, bench.loop(case, given.seconds, bench.PERIOD))
                guess = bench.predict(case, parts, count, given.seconds, nodes=2)
                rows.append(bench.row(f"{case.name}, {given.rate}", count, real, guess))
                print(*map(number, rows[-1].values()), sep=", ", file=sys.stderr, flush=True)
    print(columns([tuple(rows[0]), *(tuple(map(number, row.values())) for row in rows)]))
    if given.json:
        Path(given.json).write_text(json.dumps({"rows": rows, "parts": parts.numbers()}, indent=1) + "\n")


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
    main()
