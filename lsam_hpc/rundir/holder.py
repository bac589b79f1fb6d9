"""What the lock of a run directory says: the job that holds it, its last heartbeat, and the progress of its ranks."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from lsam_hpc.rundir.processes import Process

NAME = "job.lock"
HEARTBEAT = 5.0  # s between two heartbeats


@dataclass(frozen=True)
class Holder:
    """The job that holds a lock: the first line of the file."""

    token: str  # of the attempt: no two are equal
    job: str  # of the batch system, "" outside one
    host: str  # of the rank that sends the heartbeats
    process: int  # its id
    rank: int
    processes: list[Process]  # the job's, on this rank's machine
    elsewhere: int  # number of processes on other machines
    ranks: list[int] = field(default_factory=list)  # of `processes`

    def __str__(self) -> str:
        return f"process {self.process} on {self.host}, job {self.job or 'none'}"


@dataclass(frozen=True)
class Progress:
    """What the rank that sends the heartbeats knows of the others: the second line, replaced at each heartbeat."""

    steps: Sequence[int] = ()  # local steps of each rank; empty before training starts
    unresponsive: Sequence[int] = ()  # ranks without a heartbeat
    total: int | None = None  # steps of all ranks that the job will take; None: not known


@dataclass(frozen=True)
class Look:
    """What a lock file holds, and when it was touched."""

    holder: Holder | None  # None: not written completely, or damaged
    touched: float  # modification time
    progress: Progress = Progress()

    @property
    def name(self) -> str:
        """The holder, for messages."""
        return str(self.holder or "an unknown process")


def read_lock(path: Path) -> Look | None:
    """Return what a lock holds, None if there is none. Opening it makes NFS ask the server."""
    try:
        with path.open("rb") as file:
            first, _, second = file.read().partition(b"\n")
            return Look(parsed(first), os.fstat(file.fileno()).st_mtime, _progress(second))
    except FileNotFoundError:
        return None


def parsed(line: bytes) -> Holder | None:
    """Return the holder from the first line of a lock; None if it is damaged."""
    try:
        fields = json.loads(line)
        return Holder(**{**fields, "processes": [Process(**process) for process in fields["processes"]]})
    except (ValueError, TypeError, KeyError):
        return None


def as_line(content: Holder | Progress) -> bytes:
    """Return a line of a lock."""
    return json.dumps(asdict(content)).encode() + b"\n"


def _progress(line: bytes) -> Progress:
    """Return the progress from the second line; an empty one if a heartbeat is writing it at this moment."""
    try:
        return Progress(**json.loads(line))
    except (ValueError, TypeError):
        return Progress()
