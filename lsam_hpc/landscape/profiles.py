"""The traces of torch.profiler in a run directory, on the clock of the run's log.

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
    """Return the traces in a directory by rank; none if it is not there."""
    found = {}
    for file in folder.iterdir() if folder.is_dir() else []:
        if match := re.fullmatch(r"rank-(\d{4,})\.json\.gz", file.name):
            found[int(match[1])] = file
    return dict(sorted(found.items()))


def profile_events(file: Path, rank: int, start: float, device: int) -> Iterator[Event]:
    """Yield the events of a rank's trace: those of its threads in the rank's process, each GPU as one of its own.

    Args:
        file: Chrome trace, gzipped.
        rank: that it is of: its process in the timeline.
        start: of the run, seconds since 1970: the timeline's 0.
        device: the number of the first process that is free for a GPU.

    Raises:
        InputError: the file is no such trace.
    """
    base, found = _read(file)
    shift = base / 1e3 - 1e6 * start
    host = _host(found)
    processes: dict[int, int] = {}  # GPU -> process
    threads: set[tuple[int, int]] = set()
    for event in sorted((e for e in found if e["ph"] != "M" and isinstance(e["pid"], int)), key=lambda e: e["ts"]):
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
        base, found = float(trace["baseTimeNanoseconds"]), trace["traceEvents"]
        for event in found:
            # Spans and marks of the profiler itself have names for numbers.
            if event["ph"] != "M" and isinstance(event["pid"], int):
                int(event["tid"])
                if not math.isfinite(event["ts"]):
                    raise ValueError("a time that is not finite")
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{file}: expected a trace of torch.profiler, found: {type(error).__name__}: {error}"
        ) from error
    return base, found


def _host(found: list[Event]) -> int | None:
    """Return the process that computed on the CPU: GPUs have the numbers of devices."""
    labels = (e for e in found if e["ph"] == "M" and e.get("name") == "process_labels")
    return next((e["pid"] for e in labels if e["args"].get("labels") == "CPU"), None)


def _named(kind: str, process: int, thread: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}
