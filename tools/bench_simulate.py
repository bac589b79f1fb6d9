"""`lsam bench simulate`: the simulator against real jobs on this machine, with what one and two ranks measured."""

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

from lsam_hpc.tools.bench_base import check_out, job_environment, launcher, number
from lsam_hpc.tools.bench_base import machine as describe_machine

from lsam_hpc.arguments import Parser
from lsam_hpc.errors import InputError
from lsam_hpc.simulate.describe import Job, Machine
from lsam_hpc.simulate.result import Result, simulate
from lsam_hpc.text import columns

PAUSE, PRODUCTS = 0.02, 4  # a pass: a pause as in `lsam bench straggler`, or so many products of matrices
SLOWER = 4
LONGER = 10  # times as long as the real job does the simulated one run, so that chance is in the real one only
Start = Callable[[int, list[str]], list[str]]  # ranks, a Python program's arguments -> a command
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """A kind of job.

    Args:
        name: for the table.
        pause: seconds of a pass in which the CPU idles.
        products: of matrices in a pass.
        slower: how many times longer the last rank's passes are.
        parameters: of the model.
    """

    name: str
    pause: float
    products: int
    slower: float
    parameters: int = 1_000_000


@dataclass(frozen=True)
class Parts:
    """What a prediction is made of.

    Args:
        job: of one rank.
        machine: this one.
        products: seconds of a step's products of matrices, which are what a slow rank has more of.
    """

    job: Job
    machine: Machine
    products: float

    def numbers(self) -> dict[str, float | str]:
        """Return what was measured, by name."""
        own = {name: getattr(self.job, name) for name in ("parameters", "step", "work", "sigma")}
        return {**own, **asdict(self.machine), "products": self.products}


# Passes of random length: with equal ones ranks stay as far apart as they happened to start, and so does the staleness.
# An exchange at every step, so that there is enough staleness to count.
SIGMA, PERIOD = 0.3, 1
CASES = (
    Case("pauses", PAUSE, 0, 1),
    Case("pauses, one rank 4x", PAUSE, 0, SLOWER),
    Case("pauses, 4 M", PAUSE, 0, 1, 4_000_000),
    Case("computed", 0.0, PRODUCTS, 1),
    Case("computed, one rank 4x", 0.0, PRODUCTS, SLOWER),
)


def main(argv: Sequence[str]) -> int:
    """Run the jobs, print simulated against measured; return the exit code."""
    parser = Parser(prog="lsam bench simulate", description="Compare the simulator with real jobs on this machine.")
    parser.add_argument("--np", default="1,2,4,8", help="numbers of ranks (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each job (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers and the machine's description there")
    given = parser.parse_args(argv)
    ranks = counts(given.np)
    check(given.seconds)
    check_out(given.json)
    about = describe_machine()
    rows = [row for case in CASES for row in compare(case, ranks, given.seconds, mpirun)]
    print(columns([tuple(rows[0]), *(tuple(map(number, row.values())) for row in rows)]))
    print(", ".join(f"{key}: {value}" for key, value in about.items()))
    if given.json:
        parts = {case.name: measure(alike(case), given.seconds).numbers() for case in CASES if case.slower == 1}
        report = {"benchmark": "simulate", "machine": about, "rows": rows, "parts": parts}
        Path(given.json).write_text(json.dumps(report, indent=1) + "\n")
    return 0


def counts(text: str) -> list[int]:
    """Return the numbers of ranks that an option names."""
    try:
        found = [int(word) for word in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise InputError(f"--np: expected numbers of ranks such as 1,2,4, found {text}")
    return found


def check(seconds: float) -> None:
    """Raise InputError for a length of jobs that makes no sense."""
    if not 1 <= seconds < math.inf:
        raise InputError(f"--seconds: expected a number from 1 on, found {seconds:g}")


def mpirun(ranks: int, words: list[str]) -> list[str]:
    """Return the command that starts a Python program on ranks of this machine."""
    return [*launcher(ranks), sys.executable, "-m", "mpi4py", *words]


def compare(case: Case, counts: Sequence[int], seconds: float, start: Start) -> list[dict[str, str | float]]:
    """Return a row for each number of ranks: simulated and measured throughput and mean staleness."""
    rows: list[dict[str, str | float]] = []
    parts = measure(alike(case), seconds)
    for count in counts:
        real = run(start, count, loop(case, seconds, PERIOD))
        rows.append(row(case.name, count, real, predict(case, parts, count, seconds)))
        print(*map(number, rows[-1].values()), sep=", ", file=sys.stderr, flush=True)
    return rows


def alike(case: Case) -> Case:
    """Return the case whose parts are measured for this one."""
    return replace(case, name="", slower=1)


def row(name: str, ranks: int, real: Rows, guess: Result) -> dict[str, str | float]:
    """Return what was measured and what was simulated, side by side."""
    rate = sum(r["rate"] for r in real)
    exchanges = sum(r["exchanges"] for r in real)
    stale, seconds = (
        sum(r[what] * r["exchanges"] for r in real) / max(1, exchanges) for what in ("staleness", "seconds")
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
    """Return the simulated run of so many ranks on a machine, or on so many nodes that share it."""
    job, idle = parts.job, parts.job.step - parts.job.work
    last = ranks - 1
    job = replace(
        job, ranks=ranks,
        factors={last: case.slower if idle else 1.0},
        work_factors={last: 1 + (case.slower - 1) * parts.products / job.work},
    )  # fmt: skip
    whole = parts.machine
    cores, memory = max(1.0, whole.cores / nodes), max(whole.copy, whole.memory / nodes)
    machine = replace(whole, ranks_per_node=ranks // nodes, cores=cores, memory=memory)
    return simulate(job, machine, LONGER * seconds)


@cache
def measure(case: Case, seconds: float) -> Parts:
    """Return what one rank does with and without exchanges, and two without and with the windows.

    Args:
        case: as `alike` returns it.
        seconds: of each run.
    """
    own = run(mpirun, 1, loop(case, seconds, 0))[0]
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
    cores = min(2.0, max(1.0, two / one))  # two ranks' work may slow each other down by more than the cores' number
    read, add = alone["read"] / copy, alone["add"] / copy
    step = 1 / own["rate"]
    work = min(step, own["work"]) if case.pause else step
    job = Job(1, case.parameters, step, work=work, period=PERIOD, distribution="lognormal", sigma=own["sigma"])
    machine = Machine(
        "this", ranks_per_node=1, cores=cores * (os.cpu_count() or 2) / 2, copy=size / copy,
        memory=max(2 * size / together, size / copy),
        nic=1e9, rank_rate=1e9, latency=1e-4, read_factor=read, add_factor=add,
        arithmetic=max(0.0, once["seconds"] / copy - read - add), held=once["blocked"] / copy,
    )  # fmt: skip
    return Parts(job, machine, 2 * alone["products"] if case.products else 0.0)


def loop(case: Case, seconds: float, period: int) -> dict[str, Any]:
    """Return what `bench_simulate_job` is told."""
    return {"what": "loop", "seconds": seconds, "period": period, "pause": case.pause, "products": case.products,
            "slower": case.slower, "sigma": SIGMA, "parameters": case.parameters}  # fmt: skip


def run(start: Start, ranks: int, what: dict[str, Any]) -> Rows:
    """Run a job and return what each rank found."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        words = ["-m", "lsam_hpc.tools.bench_simulate_job", json.dumps(what), str(out)]
        done = subprocess.run(
            start(ranks, words),
            env=job_environment(),
            capture_output=True,
            text=True,
            timeout=120 + 10 * what.get("seconds", 0),
            check=False,
        )  # fmt: skip
        if done.returncode:
            raise InputError(
                f"bench simulate: expected a job of {ranks} ranks to run, found: {done.stderr.strip()[-300:]}"
            )
        rows: Rows = json.loads(out.read_text())
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
