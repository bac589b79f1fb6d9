"""`lsam bench startup`: seconds until the first step of `mpirun -n 4 lsam train`, relative to an import of torch."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from lsam_hpc.errors import InputError
from lsam_hpc.tools.bench.base import Report, Row, aim, caption, counted, job_environment, launcher, markdown, value
from lsam_hpc.trajectory import Run

TITLE = "The start of a job"
RANKS = 4
OURS, BARE, RATIO = "first step of lsam train", "import torch", ": import torch"
MOST = 3  # turns; each one takes some seconds


def measure(repeats: int, *, quick: bool) -> list[Row]:
    """Return a row per way to start; see `base.Benchmark`.

    Each way starts four processes at once: plain ones that import torch; jobs that import MPI, or MPI and torch; and
    the quickstart's job, timed from the start of mpirun to the last rank's first step in its log. The ways take turns.
    """
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, Callable[[], float]] = {
            BARE: lambda: _bare("import torch"),
            "mpirun, MPI": lambda: _job("from mpi4py import MPI"),
            "mpirun, MPI and torch": lambda: _job("import torch; from mpi4py import MPI"),
            OURS: lambda: _first_step(Path(folder)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for turn in counted(range(0 if quick else -1, 1 if quick else max(MOST, repeats // 5))):
            for name, way in ways.items():
                took = way()
                if turn >= 0:
                    seconds[name].append(took)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return [{"": name, "s": median, RATIO: median / medians[BARE]} for name, median in medians.items()]


def page(reports: Sequence[Report]) -> str:
    """Return the section of docs/explanation/performance.md; see `base.Benchmark`."""
    text = f"""\
Seconds from the start of `mpirun -n {RANKS} lsam train` (the quickstart) until every rank has taken its first step,
relative to {RANKS} processes that only import torch. All ways take turns on the same cores.

"""
    for report in reports:
        text += f"{caption(report)}\n{markdown(report.rows)}\n"
        text += aim(f"{OURS} {RATIO}", value(report, OURS, RATIO), 1.3) + "\n"
    return text


def _bare(code: str) -> float:
    began = time.time()
    started = [subprocess.Popen([sys.executable, "-c", code], env=job_environment()) for _ in range(RANKS)]
    codes = [process.wait() for process in started]
    if any(codes):
        raise InputError(f"bench startup: expected python -c {code!r} to end with exit code 0, found {codes}")
    return time.time() - began


def _job(code: str) -> float:
    began = time.time()
    _run(["-c", code])
    return time.time() - began


def _first_step(folder: Path) -> float:
    out = folder / "run"
    began = time.time()
    _run(
        ["-m", "lsam_hpc", "train", "--steps", str(4 * RANKS), "--budget", "per-rank", "--out", str(out), "--overwrite"]
    )
    with Run(out) as run:
        firsts = [float(run.log(r).attributes["start_time"]) + float(run.steps(r)["time"][0]) for r in run.ranks]
    return max(firsts) - began


def _run(words: Sequence[str]) -> None:
    command = [*launcher(RANKS), sys.executable, *words]
    done = subprocess.run(command, env=job_environment(), capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise InputError(f"bench startup: expected exit code 0 of {RANKS} ranks, found: {done.stderr.strip()[-300:]}")
