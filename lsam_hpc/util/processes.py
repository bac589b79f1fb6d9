"""The processes above and beside a rank, from Linux's /proc."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from lsam_hpc.util.launched import launched_ranks, rank_variable

PROC = Path("/proc")
_MONITORS = ("conmon", "containerd-shim")  # parents of podman's and docker's containers; /proc has 15 letters of a name
_STARTERS = ("starter", "starter-suid")  # Apptainer's, between the launcher and a rank
_FIRST = "appinit"  # process 1 of Apptainer's containers with --pid


def ancestors(env: Mapping[str, str] = os.environ) -> list[int]:
    """Return the processes above this one up to its launcher; empty without a launcher, or if it is not among them.

    The launcher is the first whose environment lacks this rank's number, or cannot be read: mpirun or its daemon,
    MPICH's proxy, srun's slurmstepd. It is not above a container that podman or docker started for this rank.
    """
    name = rank_variable(env)
    if name is None or not launched_ranks(env)[1]:
        return []
    above = [os.getppid()]
    while variable(above[-1], name) == env[name] or _name(above[-1]) in _STARTERS:
        parent = _parent(above[-1])
        if parent is None:
            return above
        above.append(parent)
    outside = above[-1] == 0 or any(_name(pid) in (*_MONITORS, _FIRST) for pid in above)
    return [] if outside else above


def alone_in_namespace(env: Mapping[str, str] = os.environ) -> bool:
    """Return whether this rank's process IDs are those of a container that was started for this rank."""
    name = rank_variable(env)
    return name is not None and (variable(1, name) == env[name] or _name(1) == _FIRST)


def reparented(above: list[int]) -> bool:
    """Return True if a process above this one has ended: Linux gives the children of a process that ends to another.

    Args:
        above: `ancestors` at the start.
    """
    parent: int | None = os.getppid()
    for expected in above:
        if parent != expected:
            return parent is not None  # None: not readable
        parent = _parent(expected)
    return False


def variable(pid: int, name: str) -> str | None:
    """Return a variable of a process's environment; None if it has none, or belongs to another user."""
    try:
        words = (PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return None
    key = name.encode() + b"="
    return next((word.removeprefix(key).decode() for word in words if word.startswith(key)), None)


def ranks_of(launcher: int, env: Mapping[str, str] = os.environ) -> set[int]:
    """Return the ranks that a launcher has started on this node and that are alive.

    Args:
        launcher: its process id.
        env: of this process.
    """
    name = rank_variable(env) or ""
    pids = [int(path.name) for path in PROC.iterdir() if path.name.isdecimal()]
    return {int(rank) for pid in pids if _parent(pid) == launcher and (rank := variable(pid, name)) is not None}


def _name(pid: int) -> str:
    try:
        return (PROC / str(pid) / "comm").read_text().rstrip("\n")
    except OSError:
        return ""


def _parent(pid: int) -> int | None:
    """Return the parent of a process; None if it has ended, or is not visible."""
    try:
        state, parent = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return None
    return None if state == "Z" else int(parent)
