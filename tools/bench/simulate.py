"""`lsam bench simulate`: compare the simulator with real jobs on this machine."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from lsam_hpc.errors import InputError
from lsam_hpc.simulate.describe import Job, Machine
from lsam_hpc.simulate.result import Result, simulate
from lsam_hpc.tools.bench.base import check_out, job_environment, launcher, number
from lsam_hpc.tools.bench.base import machine as describe_machine
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.document import document
from lsam_hpc.util.progress import add_quiet, counted
from lsam_hpc.util.text import columns

PAUSE, PRODUCTS = 0.02, 4  # a pass: a pause in seconds as in `lsam bench straggler`, or a number of matrix products
SLOWER = 4
LONGER = 10  # simulated time, relative to the real job's, so that only the real job has statistical noise
Start = Callable[[int, list[str]], list[str]]  # ranks, a Python program's arguments -> a command
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A kind of job.

    Args:
        name: name in the table.
        pause: seconds of a pass in which the CPU idles.
        products: matrix products in a pass.
        slower: factor by which the last rank's passes are longer.
        parameters: size of the model.
    """

    name: str
    pause: float
    products: int
    slower: float
    parameters: int = 1_000_000


@dataclass(frozen=True)
class Parts:
    """The measured input of a prediction.

    Args:
        job: a job of one rank.
        machine: this machine.
        products: seconds of a step's matrix products, of which a slow rank has more.
    """

    job: Job
    machine: Machine
    products: float

    def numbers(self) -> dict[str, float | str]:
        """Return the measured numbers by name."""
        job = {name: getattr(self.job, name) for name in ("parameters", "step", "work", "sigma")}
        return {**job, **asdict(self.machine), "products": self.products}


# Passes have random lengths: with equal lengths, the ranks' offsets and so the staleness would depend on the start.
# An exchange at every step gives enough staleness to count.
SIGMA, PERIOD = 0.3, 1
CASES = (
    Case("pauses", PAUSE, 0, 1),
    Case("pauses, one rank 4x", PAUSE, 0, SLOWER),
    Case("pauses, 4 M", PAUSE, 0, 1, 4_000_000),
    Case("computed", 0.0, PRODUCTS, 1),
    Case("computed, one rank 4x", 0.0, PRODUCTS, SLOWER),
)


def main(argv: Sequence[str]) -> int:
    """Run the jobs, and print simulated and measured numbers; return the exit code."""
    parser = Parser(prog="lsam bench simulate", description="Compare the simulator with real jobs on this machine.")
    parser.add_argument("--np", default="1,2,4,8", help="numbers of ranks (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of each job (default: %(default)s)")
    where = "write the numbers and the machine's description to FILE (without FILE: print them, and nothing else)"
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help=where)
    add_quiet(parser)
    args = parser.parse_args(argv)
    ranks = counts(args.np)
    check_seconds(args.seconds)
    check_out(args.json)
    about = describe_machine()
    title = None if args.quiet else "lsam bench simulate"
    rows = [row for case in counted(CASES, title) for row in compare(case, ranks, args.seconds, mpirun)]
    if args.json != "-" and not args.quiet:
        print(columns([tuple(rows[0]), *(tuple(map(number, row.values())) for row in rows)]))
        print(", ".join(f"{key}: {value}" for key, value in about.items()))
    if args.json:
        parts = {case.name: measure(balanced(case), args.seconds).numbers() for case in CASES if case.slower == 1}
        report = {"benchmark": "simulate", "machine": about, "rows": rows, "parts": parts}
        if args.json == "-":
            print(document(report))
        else:
            Path(args.json).write_text(document(report) + "\n")
    return 0


def counts(text: str) -> list[int]:
    """Return the numbers of ranks in the option --np."""
    try:
        ranks = [int(word) for word in text.split(",")]
    except ValueError:
        ranks = []
    if not ranks or min(ranks) < 1:
        raise InputError(f"--np: expected numbers of ranks such as 1,2,4, found {text}")
    return ranks


def check_seconds(seconds: float) -> None:
    """Raise InputError for an invalid duration of jobs."""
    if not 1 <= seconds < math.inf:
        raise InputError(f"--seconds: expected a number from 1 on, found {seconds:g}")


def mpirun(ranks: int, words: list[str]) -> list[str]:
    """Return the command that starts a Python program on `ranks` ranks of this machine."""
    return [*launcher(ranks), sys.executable, "-m", "mpi4py", *words]


def compare(case: Case, counts: Sequence[int], seconds: float, start: Start) -> list[dict[str, str | float]]:
    """Return a row for each number of ranks: simulated and measured throughput and mean staleness."""
    rows: list[dict[str, str | float]] = []
    parts = measure(balanced(case), seconds)
    for count in counts:
        real = run(start, count, loop(case, seconds, PERIOD))
        rows.append(row(case.name, count, real, predict(case, parts, count, seconds)))
        print(*map(number, rows[-1].values()), sep=", ", file=sys.stderr, flush=True)
    return rows


def balanced(case: Case) -> Case:
    """Return the case without a slow rank, for which the parts are measured."""
    return replace(case, name="", slower=1)


def row(name: str, ranks: int, real: Rows, guess: Result) -> dict[str, str | float]:
    """Return a row with the measured and the simulated numbers."""
    rate = sum(r["rate"] for r in real)
    exchanges = sum(r["exchanges"] for r in real)
    stale, seconds = (
        sum(r[key] * r["exchanges"] for r in real) / max(1, exchanges) for key in ("staleness", "seconds")
    )
    return {
        "": name,
        "ranks": float(ranks),
        "steps/s": rate,
        "simulated": guess.rate,
        "error %": 100 * (guess.rate / rate - 1),
        "staleness": stale,
        "simulated ": guess.staleness.mean,
        "error % ": 100 * (guess.staleness.mean / stale - 1) if stale else 0.0,
        "exchanges": float(exchanges),
        "exchange ms": 1e3 * seconds,
        "simulated  ": 1e3 * guess.exchange.mean,
        "load": os.getloadavg()[0],
    }


def predict(case: Case, parts: Parts, ranks: int, seconds: float, nodes: int = 1) -> Result:
    """Simulate `ranks` ranks on the measured machine, or on `nodes` nodes that share it."""
    job, idle = parts.job, parts.job.step - parts.job.work
    last = ranks - 1
    job = replace(
        job,
        ranks=ranks,
        factors={last: case.slower if idle else 1.0},
        work_factors={last: 1 + (case.slower - 1) * parts.products / job.work},
    )
    whole = parts.machine
    cores, memory = max(1.0, whole.cores / nodes), max(whole.copy, whole.memory / nodes)
    machine = replace(whole, ranks_per_node=ranks // nodes, cores=cores, memory=memory)
    return simulate(job, machine, LONGER * seconds)


@cache
def measure(case: Case, seconds: float) -> Parts:
    """Measure one rank with and without exchanges, and two ranks without exchanges and with the windows.

    Args:
        case: as `balanced` returns it.
        seconds: of each run.
    """
    plain = run(mpirun, 1, loop(case, seconds, 0))[0]
    once = run(mpirun, 1, loop(case, seconds, PERIOD))[0]
    busy = loop(replace(case, pause=0.0), seconds / 2, 0)
    one, two = (sum(rank["rate"] for rank in run(mpirun, ranks, busy)) for ranks in (1, 2))
    windows = run(
        mpirun,
        2,
        {
            "what": "exchange",
            "parameters": case.parameters,
            "repeats": 50,
            "products": max(1, case.products),
            "rest": 0.0,
        },
    )
    alone, together = windows[0], max(rank["copy together"] for rank in windows)
    copy = alone["copy"]
    size = 4 * case.parameters
    cores = min(2.0, max(1.0, two / one))  # two ranks may slow each other down
    read, add = alone["read"] / copy, alone["add"] / copy
    step = 1 / plain["rate"]
    work = min(step, plain["work"]) if case.pause else step
    job = Job(1, case.parameters, step, work=work, period=PERIOD, distribution="lognormal", sigma=plain["sigma"])
    machine = Machine(
        "this",
        ranks_per_node=1,
        cores=cores * (os.cpu_count() or 2) / 2,
        copy=size / copy,
        memory=max(2 * size / together, size / copy),
        nic=1e9,
        rank_rate=1e9,
        latency=1e-4,
        read_factor=read,
        add_factor=add,
        arithmetic=max(0.0, once["seconds"] / copy - read - add),
        held=once["blocked"] / copy,
    )
    return Parts(job, machine, 2 * alone["products"] if case.products else 0.0)


def loop(case: Case, seconds: float, period: int) -> dict[str, Any]:
    """Return the arguments of a training loop for `simulate_job`."""
    return {
        "what": "loop",
        "seconds": seconds,
        "period": period,
        "pause": case.pause,
        "products": case.products,
        "slower": case.slower,
        "sigma": SIGMA,
        "parameters": case.parameters,
    }


def run(start: Start, ranks: int, arguments: dict[str, Any]) -> Rows:
    """Run a job of `simulate_job` and return the results of each rank."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        words = ["-m", "lsam_hpc.tools.bench.simulate_job", json.dumps(arguments), str(out)]
        done = subprocess.run(
            start(ranks, words),
            env=job_environment(),
            capture_output=True,
            text=True,
            timeout=120 + 10 * arguments.get("seconds", 0),
            check=False,
        )
        if done.returncode:
            raise InputError(
                f"bench simulate: expected exit code 0 of {ranks} ranks, found: {done.stderr.strip()[-300:]}"
            )
        rows: Rows = json.loads(out.read_text())
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
