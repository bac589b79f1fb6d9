"""Reads the traces of torch.profiler in a run directory and shifts them to the clock of the run's log.

Source: "Trace Event Format", Google's Catapult project; `baseTimeNanoseconds` as PyTorch's libkineto writes it.
"""

from __future__ import annotations

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lsam_hpc.errors import InputError

Event = dict[str, Any]


def profiles(folder: Path) -> dict[int, Path]:
    """Return the trace files in a directory by rank; none if the directory does not exist."""
    files = {}
    for file in folder.iterdir() if folder.is_dir() else []:
        if match := re.fullmatch(r"rank-(\d{4,})\.json\.gz", file.name):
            files[int(match[1])] = file
    return dict(sorted(files.items()))


def profile_events(file: Path, rank: int, start: float, device: int) -> Iterator[Event]:
    """Yield the events of a rank's trace: threads belong to the rank's process, each GPU is a separate process.

    Args:
        file: a gzipped Chrome trace.
        rank: the rank that wrote it, and its process number in the timeline.
        start: start time of the run, in seconds since 1970: time 0 of the timeline.
        device: first free process number, for the first GPU.

    Raises:
        InputError: the file is not such a trace.
    """
    base, events = _read(file)
    shift = base / 1e3 - 1e6 * start
    host = _host(events)
    processes: dict[int, int] = {}  # GPU -> process
    threads: set[tuple[int, int]] = set()
    for event in sorted((e for e in events if e["ph"] != "M" and isinstance(e["pid"], int)), key=lambda e: e["ts"]):
        pid, tid = event["pid"], event["tid"]
        if pid == host:
            process, name = rank, "operations" if tid == host else f"operations of thread {tid}"
        else:
            process, name = processes.setdefault(pid, device + len(processes)), f"stream {tid}"
        if (process, tid) not in threads:
            if process != rank and not any(process == known for known, _ in threads):
                yield _named("process_name", process, 0, f"rank {rank}, GPU {pid}")
            threads.add((process, tid))
            yield _named("thread_name", process, tid, name)
        moved = {**event, "pid": process, "ts": round(event["ts"] + shift, 3)}
        if "id" in event:
            moved["id"] = f"{rank}.{event['id']}"
        yield moved


def _read(file: Path) -> tuple[float, list[Event]]:
    """Return the base time in nanoseconds and the events."""
    try:
        trace = json.loads(gzip.decompress(file.read_bytes()))
        base, events = float(trace["baseTimeNanoseconds"]), trace["traceEvents"]
        for event in events:
            # Skip the profiler's own spans and marks: their pid and tid are names.
            if event["ph"] != "M" and isinstance(event["pid"], int):
                int(event["tid"])
                if not math.isfinite(event["ts"]):
                    raise ValueError("a time that is not finite")
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file}: expected a trace of torch.profiler, found: {type(error).__name__}: {error}"
        ) from error
    return base, events


def _host(events: list[Event]) -> int | None:
    """Return the process that computed on the CPU; the pid of a GPU is its device number."""
    labels = (e for e in events if e["ph"] == "M" and e.get("name") == "process_labels")
    return next((e["pid"] for e in labels if e["args"].get("labels") == "CPU"), None)


def _named(kind: str, process: int, thread: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}
