"""`lsam monitor RUN`: show the state of a run's job, and a live table of its ranks, from its lock and its logs."""

from __future__ import annotations

import math
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.tools.jobstate import GONE, SILENT, Job, RankLook, job_text, look_at, rank_state
from lsam_hpc.trajectory import Run
from lsam_hpc.trajectory.openfile import is_closed
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.document import add_json, document
from lsam_hpc.util.interrupts import interrupts, sleep
from lsam_hpc.util.text import columns

HEAD = (
    "rank",
    "host",
    "step",
    "total step",
    "loss",
    "steps/s",
    "staleness mean",
    "max",
    "distance",
    "refused",
    "last row",
    "state",
)
PATIENCE = 60.0  # seconds to wait for files that are missing or incomplete
LOSSES = 20  # last steps over which the loss is averaged
MINUTE = 60.0  # last seconds of the log over which the rate is measured


@dataclass(frozen=True)
class Status:
    """A rank's progress."""

    rank: int
    host: str
    step: int  # local steps taken
    global_step: int  # steps of all ranks at this rank's last step
    loss: float  # NaN without a step
    rate: float  # steps per second; NaN without two steps
    staleness_mean: float  # NaN without an exchange
    staleness_max: int
    distance: float  # from the center at the last exchange; NaN without one
    refused: int
    age: float  # seconds since the last row
    ended: bool
    closed: bool  # the rank closed its log
    state: str = ""  # see `rank_state`


def main(argv: Sequence[str]) -> int:
    """Show the table until the run ends or Ctrl-C; return the exit code."""
    parser = Parser(
        prog="lsam monitor",
        description="Show the state of a run's job and the progress of its ranks, refreshed until the job has ended. "
        "Reads only the run directory.",
    )
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between two refreshes (default: 2)")
    parser.add_argument("--once", action="store_true", help="show the table once")
    add_json(parser, "print the table once, as JSON")
    args = parser.parse_args(argv)
    if not 0 < args.interval < math.inf:
        raise InputError(f"--interval: expected more than 0 seconds, found {args.interval}")
    if args.json:
        print(document(_numbers(Path(args.run))))
        return 0
    if args.once:
        print(_look(Path(args.run))[0])
        return 0
    try:
        with interrupts() as receiver:
            interrupted = _watch(Path(args.run), args.interval, receiver)
    except KeyboardInterrupt:
        interrupted = True
    if interrupted:
        print()
    return 0


def statuses(run: Run, now: float, job: Job | None = None) -> list[Status]:
    """Return the progress of each rank.

    Args:
        run: the run, just opened.
        now: the time, seconds since 1970.
        job: the run's job. Default: one without a lock.
    """
    job = job or Job()
    ranks = [_status(run, rank, now) for rank in run.ranks]
    over = job.is_over(looks(ranks))
    seconds = run.config.get("flush_seconds")
    late = max(SILENT, 2 * seconds) if isinstance(seconds, (int, float)) else SILENT
    return [
        replace(status, state=rank_state(job, status.rank, look, over=over, late=late), step=max(status.step, steps))
        for status, look in zip(ranks, looks(ranks), strict=True)
        for steps in [job.steps[status.rank] if status.rank < len(job.steps) else 0]
    ]


def looks(ranks: Sequence[Status]) -> list[RankLook]:
    """Return what the states of a job and its ranks depend on."""
    return [RankLook(status.step, status.age, status.ended, status.closed) for status in ranks]


def table(path: Path, ranks: Sequence[Status], job: str = "") -> str:
    """Return a line on the run, a line for each rank, and one on the job.

    Args:
        path: of the run.
        ranks: their progress.
        job: the last line. Default: one that names ranks without rows for 5 min, if there are any.
    """
    rate = sum(status.rate for status in ranks if status.state == "running" and status.rate > 0)
    lines = [
        f"{path}: {len(ranks)} ranks, total step {max(status.global_step for status in ranks):,}, {rate:.1f} steps/s",
        columns([HEAD, *map(_row, ranks)]),
    ]
    gone = [f"{status.rank} ({status.host})" for status in ranks if not status.ended and status.age > GONE]
    if job:
        lines.append(job)
    elif gone:
        lines.append(f"no row for {_span(GONE)} from rank {', '.join(gone)}: stopped or failed")
    return "\n".join(lines)


def _watch(path: Path, interval: float, receiver: socket.socket) -> bool:
    """Show the table until the job ends; return True if Ctrl-C ended it before."""
    began = time.monotonic()  # start of the wait for files
    shown = ""
    while True:
        read_at = time.monotonic()
        try:
            text, over = _look(path)
            began = time.monotonic()
        except InputError as error:
            # A job that just started has not created all files yet, and one that ends closes them for a moment.
            if not path.is_dir():
                raise
            job = look_at(path, time.time(), locks=False)
            over = job.crashed
            if job.locked:
                began = time.monotonic()
                text = job_text(path, job, [], 0)
            elif time.monotonic() - began > PATIENCE:
                raise
            else:
                text = f"waiting for the run's files: {error}"
        if text != shown:
            _show(text)
            shown = text
        if over:
            return False
        # Long logs take long to read: sleep for at least as long, to leave the machine to the run.
        if sleep(max(interval, time.monotonic() - read_at), receiver):
            return True


def _numbers(path: Path) -> dict[str, Any]:
    """Return the table of a run as numbers."""
    with Run(path) as run:
        job = look_at(path, time.time(), locks="out" in run.config)
        ranks = statuses(run, time.time(), job)
    text = job_text(path, job, looks(ranks), max(status.global_step for status in ranks))
    return {"path": str(path), "job": text, "ranks": [asdict(status) for status in ranks]}


def _look(path: Path) -> tuple[str, bool]:
    """Return the table of a run, and whether the monitor need not wait any more."""
    with Run(path) as run:
        job = look_at(path, time.time(), locks="out" in run.config)
        ranks = statuses(run, time.time(), job)
    text = job_text(path, job, looks(ranks), max(status.global_step for status in ranks))
    if job.locked:
        over = job.crashed or (job.is_over(looks(ranks)) and job.silence > GONE)
    else:
        over = job.is_over(looks(ranks)) or all(status.ended or status.age > GONE for status in ranks)
    return table(path, ranks, text), over


def _show(text: str) -> None:
    """Print over the last table on a terminal, else below it."""
    print(f"\x1b[H\x1b[2J{text}" if sys.stdout.isatty() else f"{text}\n", flush=True)


def _status(run: Run, rank: int, now: float) -> Status:
    closed = is_closed(run.logs[rank].path)  # before its result is read
    steps, exchanges, log = run.steps(rank), run.exchanges(rank), run.logs[rank]
    times, stale = steps["time"], exchanges["staleness"]
    recent = times[times >= times[-1] - MINUTE] if len(times) else times
    return Status(
        rank=rank,
        host=log.attributes["host"],
        step=int(steps["iteration"][-1]) + 1 if len(times) else 0,
        global_step=int(steps["total_iteration"][-1]) + 1 if len(times) else 0,
        loss=float(steps["loss"][-LOSSES:].mean(dtype=np.float64)) if len(times) else math.nan,
        rate=(len(recent) - 1) / span if (span := float(np.ptp(recent)) if len(recent) else 0.0) else math.nan,
        staleness_mean=float(stale.mean()) if len(stale) else math.nan,
        staleness_max=int(stale.max()) if len(stale) else 0,
        distance=float(exchanges["center_distance"][-1]) if len(stale) else math.nan,
        refused=int(np.count_nonzero(exchanges["accepted"] == 0)),
        # Hosts' clocks may differ a little.
        age=max(0.0, now - log.attributes["start_time"] - (float(times[-1]) if len(times) else 0.0)),
        ended=log.result is not None,
        closed=closed,
    )


def _row(status: Status) -> tuple[str, ...]:
    exchanged = not math.isnan(status.staleness_mean)
    return (
        str(status.rank),
        status.host,
        f"{status.step:,}",
        f"{status.global_step:,}",
        f"{status.loss:.4f}" if status.step else "-",
        "-" if math.isnan(status.rate) else f"{status.rate:.1f}",
        f"{status.staleness_mean:.2f}" if exchanged else "-",
        f"{status.staleness_max}" if exchanged else "-",
        "-" if math.isnan(status.distance) else f"{status.distance:.3g}",
        str(status.refused),
        _span(status.age),
        status.state,
    )


def _span(seconds: float) -> str:
    """Return a time in its largest whole unit."""
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds // unit:.0f} {name}"
    return f"{seconds:.0f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
