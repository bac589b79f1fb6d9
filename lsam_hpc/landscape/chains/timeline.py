"""Writes a run as a trace for Perfetto (ui.perfetto.dev) or chrome://tracing, with a process per rank.

Source: "Trace Event Format", Google's Catapult project.
"""

from __future__ import annotations

import gzip
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.geometry.profiles import profile_events, profiles
from lsam_hpc.trajectory import Run
from lsam_hpc.trajectory.rows import Columns
from lsam_hpc.util.files import atomic_path

THREADS = ("steps", "exchanges", "waits", "states", "checkpoints")  # the index is the thread's number in the trace
Event = dict[str, Any]


def events(run: Run, advance: Callable[[], object] = lambda: None) -> Iterator[Event]:
    """Yield the events of a run, rank by rank, each thread's in the order of time.

    A step lasts from the end of the step before to its own end. The first step, and a step after lost rows, get the
    rank's median length. A wait is the total time for which an exchange blocked the training thread; it starts with the
    exchange, because the log does not say when within it. Sketches and snapshots are instants; so are the files in
    RUN/checkpoints, at their time of modification. Traces in RUN/profile follow, on the same clock.

    Args:
        run: to read, one rank at a time.
        advance: called after each rank. Default: does nothing.
    """
    for rank in run.ranks:
        yield _meta("process_name", rank, name=f"rank {rank} ({run.log(rank).attributes['host']})")
        yield _meta("process_sort_index", rank, sort_index=rank)
        for thread, name in enumerate(THREADS):
            yield {**_meta("thread_name", rank, name=name), "tid": thread}
        yield from _steps(run.steps(rank), rank)
        yield from _exchanges(run.exchanges(rank), rank)
        yield from _states(run, rank)
        advance()
    if run.path.is_dir():
        yield from _checkpoints(run)
        yield from _profiles(run)


def write_timeline(run: Run, out: Path, advance: Callable[[], object] = lambda: None) -> int:
    """Write a run as a JSON trace, gzipped if the name ends in .gz; return the number of events.

    Args:
        run: to write, one event at a time.
        out: ends in .json or .json.gz; must not exist.
        advance: called after each rank. Default: does nothing.

    Raises:
        InputError: the file cannot be made.
    """
    if not out.name.endswith((".json", ".json.gz")):
        raise InputError(f"{out}: expected a name that ends in .json or .json.gz, found {out.name!r}")
    count = 0
    with atomic_path(out) as part, _open(part, zipped=out.suffix == ".gz") as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[')
        for event in events(run, advance):
            file.write(",\n" if count else "\n")
            file.write(json.dumps(event, separators=(",", ":"), allow_nan=False))
            count += 1
        file.write("\n]}\n")
    return count


def _open(path: Path, *, zipped: bool) -> IO[str]:
    return gzip.open(path, "wt", compresslevel=5) if zipped else path.open("w")


def _steps(steps: Columns, rank: int) -> Iterator[Event]:
    ends, iterations = steps["time"], steps["iteration"]
    if not len(ends):
        return
    lengths = np.diff(ends, prepend=np.nan)
    follows = np.diff(iterations, prepend=-1) == 1
    follows[0] = False
    median = float(np.median(lengths[follows])) if follows.any() else 0.0
    before = np.concatenate([[-np.inf], ends[:-1]])
    starts = np.where(follows, before, np.maximum(ends - median, before))
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        details = {name: steps[name][i] for name in ("total_iteration", "loss", "grad_norm", "lr", "rho")}
        yield _span(f"step {iterations[i]}", rank, 0, start, end, details=details)


def _exchanges(exchanges: Columns, rank: int) -> Iterator[Event]:
    order = np.argsort(exchanges["time"], kind="stable")
    table = {name: values[order] for name, values in exchanges.items()}
    began = table["time"]
    # Durations are float32: rounding may make one end a little after the next exchange begins.
    ends = _clipped_ends(began, table["seconds"])
    for i, start in enumerate(began):
        details = {name: table[name][i] for name in ("staleness", "delay", "bytes", "center_distance", "delta_norm")}
        name = "exchange" if table["accepted"][i] else "rejected exchange"
        if math.isnan(ends[i]):
            yield _instant(name, rank, 1, start, details)
        else:
            yield _span(name, rank, 1, start, ends[i], details=details)
    for start, end, iteration in zip(began, _clipped_ends(began, table["blocked"]), table["iteration"], strict=True):
        if end > start:
            yield _span("blocked", rank, 2, start, end, details={"iteration": iteration})


def _states(run: Run, rank: int) -> Iterator[Event]:
    instants: list[tuple[float, str, Event]] = []
    for table in run.log(rank).tables:
        kind, _, state = table.partition("/")
        if state:
            rows = run.log(rank).table(table)
            for at, iteration, version in zip(rows["time"], rows["iteration"], rows["version"], strict=True):
                instants.append((float(at), f"{kind} of the {state}", {"iteration": iteration, "version": version}))
    for at, name, details in sorted(instants, key=lambda state: state[0]):
        yield _instant(name, rank, 3, at, details)


def _checkpoints(run: Run) -> Iterator[Event]:
    folder = run.path / "checkpoints"
    started = float(run.log(run.ranks[0]).attributes["start_time"])
    files = [file for file in folder.rglob("*") if file.is_file()] if folder.is_dir() else []
    for file in sorted(files, key=lambda file: file.stat().st_mtime):
        match = re.match(r"rank-(\d+)", file.name)
        rank = int(match[1]) if match else run.ranks[0]
        yield _instant(f"checkpoint {file.name}", rank, 4, max(0.0, file.stat().st_mtime - started), {})


def _profiles(run: Run) -> Iterator[Event]:
    next_process = max(run.ranks) + 1
    for rank, file in profiles(run.path / "profile").items():
        if rank in run.ranks:
            for event in profile_events(file, rank, float(run.log(rank).attributes["start_time"]), next_process):
                next_process = max(next_process, event["pid"] + 1)
                yield event


def _clipped_ends(starts: NDArray[np.float64], seconds: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the ends of events, none after the next event's start; NaN where the length is unknown."""
    ends: NDArray[np.float64] = np.minimum(starts + seconds, np.append(starts[1:], np.inf))
    return np.where(np.isnan(seconds), np.nan, ends)


def _meta(kind: str, rank: int, **details: str | int) -> Event:
    return {"ph": "M", "name": kind, "pid": rank, "tid": 0, "args": details}


def _span(name: str, rank: int, thread: int, start: float, end: float, *, details: Mapping[str, Any]) -> Event:
    # Round ends, not lengths, so that neighbouring spans meet and never overlap.
    ts, stop = _microseconds(start), _microseconds(end)
    return {
        "ph": "X",
        "name": name,
        "pid": rank,
        "tid": thread,
        "ts": ts,
        "dur": max(0, stop - ts),
        "args": _finite(details),
    }


def _instant(name: str, rank: int, thread: int, at: float, details: Mapping[str, Any]) -> Event:
    return {
        "ph": "i",
        "name": name,
        "pid": rank,
        "tid": thread,
        "ts": _microseconds(at),
        "s": "t",
        "args": _finite(details),
    }


def _microseconds(seconds: float) -> int:
    return round(float(seconds) * 1e6)


def _finite(details: Mapping[str, Any]) -> dict[str, int | float]:
    """Return the known, finite values as Python numbers; JSON has no NaN."""
    numbers = {name: value.item() if isinstance(value, np.generic) else value for name, value in details.items()}
    return {
        name: value
        for name, value in numbers.items()
        if math.isfinite(value) and not (name in ("delay", "bytes", "version") and value < 0)
    }
