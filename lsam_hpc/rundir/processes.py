"""Processes that can be told from later ones with the same id, and whether they still run."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process of a job."""

    machine: str  # differs between hosts, boots and containers, whose process ids are unrelated
    number: int  # its id
    started: str  # time of its start, to tell it from a later process with the same id; "" if unknown


def this_process() -> Process:
    """Return this process."""
    return Process(_machine(), os.getpid(), _started(os.getpid()) or "")


def lives(processes: Sequence[Process]) -> bool | None:
    """Return whether any of these processes runs; None if they are on another machine.

    Args:
        processes: of one machine.
    """
    if not processes or processes[0].machine != _machine():
        return None
    return any(_started(process.number) == process.started for process in processes)


def _machine() -> str:
    boot, namespace = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")
    try:
        return f"{socket.gethostname()} {boot.read_text().strip()} {namespace.readlink()}"
    except OSError:  # a system without /proc
        return socket.gethostname()


def _started(number: int) -> str | None:
    """Return when a process started, "" if that is unknown, None if it does not run."""
    try:
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie has ended
    except OSError:
        pass
    if Path("/proc/self").exists():
        return None
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return ""
    return ""
