"""What a check of `lsam doctor` is given and what it returns."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from mpi4py import MPI

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    check: str
    level: Level
    text: str


@dataclass(frozen=True)
class Ranks:
    """The ranks that are checked; every check is collective.

    Args:
        comm: all of them.
        folder: where runs will be written.
    """

    comm: MPI.Intracomm
    folder: Path

    def each(self, look: Callable[[], Any]) -> list[Any]:
        """Return what each rank finds, on all ranks; in place of an exception its text."""
        try:
            found = look()
        except Exception as error:  # noqa: BLE001  (whatever is wrong with a machine is a finding)
            found = f"{type(error).__name__}: {error}"
        return self.comm.allgather(found)

    def hosts(self) -> list[str]:
        """Return each rank's host."""
        return self.each(MPI.Get_processor_name)

    def first_of_nodes(self) -> list[int]:
        """Return the lowest rank of each node."""
        hosts = self.hosts()
        return sorted({host: hosts.index(host) for host in hosts}.values())


def by_value(values: Sequence[Any]) -> str:
    """Return what all ranks found, or which of them found what."""
    if len(set(values)) == 1:
        return str(values[0])
    ranks: dict[str, list[str]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(str(value), []).append(str(rank))
    return "; ".join(
        f"rank {', '.join(who[:4])}{', ...' if len(who) > 4 else ''}: {what}" for what, who in ranks.items()
    )


def verdict(findings: Sequence[Finding]) -> str:
    """Return one line on all findings."""
    failed = [found.check for found in findings if found.level == "fail"]
    doubtful = [found.check for found in findings if found.level == "warn"]
    if failed:
        return f"not ready: {', '.join(failed)}"
    return f"ready, but look at: {', '.join(doubtful)}" if doubtful else "ready"


def shown(findings: Sequence[Finding], as_json: bool) -> str:
    """Return all findings and the verdict as a table or as JSON."""
    if as_json:
        return json.dumps({"verdict": verdict(findings), "findings": [asdict(found) for found in findings]}, indent=1)
    width = max(len(found.check) for found in findings)
    lines = [f"{found.level:4}  {found.check:{width}}  {found.text}" for found in findings]
    return "\n".join([*lines, f"verdict: {verdict(findings)}"])
