"""What a batch job asks for, and what it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """A batch job.

    `setup`, `directives`, `launch` and `command` are text that stands in the script as it is.
    """

    command: str
    about: str = "Made by lsam submit."
    name: str = "lsam"
    nodes: int = 1
    ranks_per_node: int = 4
    cpus_per_rank: int = 4
    gpus_per_node: int = 0
    time: str = "01:00:00"
    partition: str | None = None
    account: str | None = None
    directives: str = ""  # more of the scheduler's options, one a line
    setup: str = ""  # has python, lsam and their MPI found
    environment: str = ""  # NAME=VALUE, one a line
    launch: str | None = None
    requeue: int = 0  # how often at most
    warn: int = 300  # s before the time limit at which the ranks are told
    sweep: str | None = None  # option=value,value,...: an array job with one element for each value
    chain: int = 1  # jobs of which each goes on where the one before ended
    pack: str | None = None  # a tar file of the environment, for the nodes' own disks
    disk: str = "/tmp"  # where it goes: a folder that is each node's own

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return self.nodes * self.ranks_per_node

    @property
    def values(self) -> list[str]:
        """What a sweep goes through, nothing without one."""
        return [] if self.sweep is None else [word.strip() for word in self.sweep.partition("=")[2].split(",")]


def directives(prefix: str, options: Sequence[tuple[str, str]], more: str, beside: bool = False) -> list[str]:
    """Return the scheduler's options as lines of a script.

    Args:
        prefix: that it knows them by, such as #SBATCH.
        options: and what to say of each; those that begin with # are there to be filled in.
        more: options as the user has written them, one a line.
        beside: whether a comment may stand on the same line.
    """
    lines = []
    for option, text in options:
        mark = "#" if option.startswith("#") else ""
        line = f"{mark}{prefix} {option.removeprefix('#')}"
        if text and not beside:
            lines.append(f"# {text}:")
        lines.append(f"{line:44} # {text}" if text and beside else line)
    return [*lines, *(f"{prefix} {line.strip()}" for line in more.splitlines() if line.strip())]
