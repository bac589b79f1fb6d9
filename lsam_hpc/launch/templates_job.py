"""The resources and the command of a batch job."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

_VARIABLE = re.compile(r"(\$[A-Za-z_]\w*|\$\{[A-Za-z_]\w*\})", re.ASCII)


@dataclass(frozen=True)
class Job:
    """A batch job.

    `setup`, `directives`, `launch` and `command` are inserted into the script unquoted.
    """

    command: str
    out: str | None = None  # run directory; None: runs/NAME-NUMBER
    about: str = "Made by lsam submit."
    name: str = "lsam"
    nodes: int = 1
    ranks_per_node: int = 4
    cpus_per_rank: int = 4
    gpus_per_node: int = 0
    time: str = "01:00:00"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    mem: str | None = None  # memory of a node
    exclusive: bool = False  # whole nodes
    select: str | None = None  # PBS: resources of a node, in place of cores, ranks and GPUs
    filesystems: str | None = None  # PBS at ALCF
    gpus: str | None = None  # Slurm: options that request the GPUs, one per line, in place of --gpus-per-node
    uenv: str | None = None  # Slurm at CSCS
    view: str | None = None  # Slurm at CSCS
    modules: str | None = None  # separated by spaces
    directives: str = ""  # further options of the scheduler, one per line
    setup: str = ""  # shell commands that put python, lsam and MPI on the PATH
    environment: str = ""  # NAME=VALUE, one per line
    launch: str | None = None
    requeue: int = 0  # maximum number of restarts
    warn: int = 300  # s before the time limit at which the ranks are signalled
    sweep: str | None = None  # option=value,value,...: an array job with one element for each value
    chain: int = 1  # number of jobs, each of which resumes the one before
    pack: str | None = None  # tar file of the environment, to be unpacked on each node
    disk: str = "/tmp"  # node-local folder for it; the job expands variables

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return self.nodes * self.ranks_per_node

    @property
    def seconds(self) -> int:
        """The time limit, s."""
        days, _, rest = self.time.rpartition("-")
        hours, minutes, seconds = map(int, rest.split(":"))
        return 86400 * int(days or 0) + 3600 * hours + 60 * minutes + seconds

    @property
    def hours(self) -> str:
        """The time limit as hours:minutes:seconds, for systems that know no days."""
        minutes, seconds = divmod(self.seconds, 60)
        return f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02}"

    def filled(self, text: str) -> str:
        """Return a text in which numbers of the job replace their names in braces, such as {ranks}."""
        for name in ("nodes", "ranks", "ranks_per_node", "cpus_per_rank", "gpus_per_node"):
            text = text.replace(f"{{{name}}}", str(getattr(self, name)))
        return text

    @property
    def values(self) -> list[str]:
        """The values of a sweep, empty without one."""
        return [] if self.sweep is None else [word.strip() for word in self.sweep.partition("=")[2].split(",")]


def expanding(text: str) -> str:
    """Return a text as a word of shell in which the job expands $NAME and ${NAME}, which it must have; nothing else."""
    word = ""
    for i, part in enumerate(_VARIABLE.split(text)):  # texts at even places, variables between them
        name = part.strip("${}")
        word += f'"${{{name}:?}}"' if i % 2 else shlex.quote(part) if part else ""
    return word or "''"


def directives(
    prefix: str, options: Sequence[tuple[str, str]], more: str, *, beside: bool = False, sentinel: bool = False
) -> list[str]:
    """Return the scheduler's options as lines of a script.

    Args:
        prefix: of the scheduler, such as #SBATCH.
        options: each with a comment; an option that begins with # is commented out, for the user to fill in.
        more: options written by the user, one per line.
        beside: put comments on the same line. Default: on the line above.
        sentinel: keep the prefix of options that are commented out, as Flux wants. Default: put # before it.
    """
    lines = []
    for option, text in options:
        line = f"{prefix} {option}"
        if option.startswith("#"):
            line = f"{prefix} # {option[1:]}" if sentinel else f"#{prefix} {option[1:]}"
        if text and not beside:
            lines.append(f"# {text}:")
        lines.append(f"{line:44} # {text}" if text and beside else line)
    return [*lines, *(f"{prefix} {line.strip()}" for line in more.splitlines() if line.strip())]
