"""`lsam monitor RUN`: show a live table of a run's ranks, from its logs."""

from __future__ import annotations

import math
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory import Run
from lsam_hpc.util.arguments import Parser
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
SILENT = 30.0  # seconds without a row; ranks write theirs every 5
GONE = 300.0  # seconds without a row after which the monitor does not wait for a rank any more
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

    @property
    def state(self) -> str:
        """`ended`: the rank wrote its result; `silent`: no row for 30 s; else `running`."""
        return "ended" if self.ended else "silent" if self.age > SILENT else "running"


def main(argv: Sequence[str]) -> int:
    """Show the table until the run ends or Ctrl-C; return the exit code."""
    parser = Parser(
        prog="lsam monitor",
        description="Show the progress of a run's ranks, refreshed until all ranks have ended. Reads only the logs.",
    )
    parser.add_argument("run", help="the run directory")
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between two refreshes (default: 2)")
    parser.add_argument("--once", action="store_true", help="show the table once")
    args = parser.parse_args(argv)
    if not 0 < args.interval < math.inf:
        raise InputError(f"--interval: expected more than 0 seconds, found {args.interval}")
    if args.once:
        with Run(args.run) as run:
            print(table(run.path, statuses(run, time.time())))
        return 0
    try:
        with _interrupts() as interrupts:
            interrupted = _watch(Path(args.run), args.interval, interrupts)
    except KeyboardInterrupt:
        interrupted = True
    if interrupted:
        print()
    return 0


def statuses(run: Run, now: float) -> list[Status]:
    """Return the progress of each rank.

    Args:
        run: the run, just opened.
        now: the time, seconds since 1970.
    """
    return [_status(run, rank, now) for rank in run.ranks]


def table(path: Path, ranks: Sequence[Status]) -> str:
    """Return a line on the run, a line for each rank, and one that names ranks without rows for 5 min."""
    rate = sum(status.rate for status in ranks if status.state == "running" and status.rate > 0)
    lines = [
        f"{path}: {len(ranks)} ranks, total step {max(status.global_step for status in ranks):,}, {rate:.1f} steps/s",
        columns([HEAD, *map(_row, ranks)]),
    ]
    if gone := [f"{status.rank} ({status.host})" for status in ranks if not status.ended and status.age > GONE]:
        lines.append(f"no row for {_span(GONE)} from rank {', '.join(gone)}: stopped or failed")
    return "\n".join(lines)


@contextmanager
def _interrupts() -> Iterator[socket.socket]:
    """Turn the first Ctrl-C into a byte to receive; a second one raises KeyboardInterrupt.

    Python prints and drops an exception raised in a destructor, so the first Ctrl-C must not rely on one.
    """
    receiver, sender = socket.socketpair()
    with receiver, sender:
        sender.settimeout(0)
        before = signal.getsignal(signal.SIGINT)
        wakeup = signal.set_wakeup_fd(sender.fileno())
        signal.signal(signal.SIGINT, lambda number, frame: signal.signal(signal.SIGINT, before))
        try:
            yield receiver
        finally:
            signal.set_wakeup_fd(wakeup)  # first: the next line may raise, and then the sockets close
            signal.signal(signal.SIGINT, before)


def _watch(path: Path, interval: float, interrupts: socket.socket) -> bool:
    """Show the table until the run ends; return True if Ctrl-C ended it before."""
    began = time.monotonic()  # start of the wait for files
    shown = ""
    while True:
        over, read_at = False, time.monotonic()
        try:
            with Run(path) as run:
                ranks = statuses(run, time.time())
            text, began = table(path, ranks), time.monotonic()
            over = all(status.ended or status.age > GONE for status in ranks)
        except InputError as error:
            # A job that just started has not created all files yet, and one that ends closes them for a moment.
            if not path.is_dir() or time.monotonic() - began > PATIENCE:
                raise
            text = f"waiting for the run's files: {error}"
        if text != shown:
            _show(text)
            shown = text
        if over:
            return False
        # Long logs take long to read: sleep for at least as long, to leave the machine to the run.
        if _sleep(max(interval, time.monotonic() - read_at), interrupts):
            return True


def _sleep(seconds: float, interrupts: socket.socket) -> bool:
    """Sleep; return True, at once, on Ctrl-C."""
    return bool(select.select([interrupts], [], [], seconds)[0])


def _show(text: str) -> None:
    """Print over the last table on a terminal, else below it."""
    print(f"\x1b[H\x1b[2J{text}" if sys.stdout.isatty() else f"{text}\n", flush=True)


def _status(run: Run, rank: int, now: float) -> Status:
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
