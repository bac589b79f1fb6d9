"""Arguments, results and report of the checks of `lsam doctor`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """The result of a check."""

    check: str
    level: Level
    text: str


class OneProcess:
    """The communicator of a process that has no MPI."""

    rank, size = 0, 1

    def allgather(self, sendobj: Any) -> list[Any]:  # noqa: ANN401 - as mpi4py's
        """Return this process's object."""
        return [sendobj]


@dataclass(frozen=True)
class Ranks:
    """The ranks that are checked; every check is collective.

    Args:
        comm: of all ranks.
        folder: that runs will be written to.
    """

    comm: Any  # mpi4py's, or OneProcess
    folder: Path

    def each(self, function: Callable[[], Any]) -> list[Any]:
        """Call a function on each rank; return all results on all ranks, with exceptions as text."""
        try:
            result = function()
        except Exception as error:  # noqa: BLE001 - any fault of a machine is a finding
            result = f"{type(error).__name__}: {error}"
        results: list[Any] = self.comm.allgather(result)
        return results

    def hosts(self) -> list[str]:
        """Return each rank's host."""
        return self.each(lambda: os.uname().nodename)

    def first_of_nodes(self) -> list[int]:
        """Return the lowest rank of each node."""
        hosts = self.hosts()
        return sorted({host: hosts.index(host) for host in hosts}.values())


def by_value(values: Sequence[Any]) -> str:
    """Return the value common to all ranks, or each value with its ranks."""
    if len(set(values)) == 1:
        return str(values[0])
    ranks: dict[str, list[str]] = {}
    for rank, value in enumerate(values):
        ranks.setdefault(str(value), []).append(str(rank))
    return "; ".join(
        f"rank {', '.join(some[:4])}{', ...' if len(some) > 4 else ''}: {value}" for value, some in ranks.items()
    )


def verdict(findings: Sequence[Finding]) -> str:
    """Return one line on all findings."""
    failed = [finding.check for finding in findings if finding.level == "fail"]
    doubtful = [finding.check for finding in findings if finding.level == "warn"]
    if failed:
        return f"not ready: {', '.join(failed)}"
    return f"ready, but look at: {', '.join(doubtful)}" if doubtful else "ready"


def report(findings: Sequence[Finding], *, as_json: bool) -> str:
    """Return all findings and the verdict as a table or as JSON."""
    if as_json:
        return json.dumps(
            {"verdict": verdict(findings), "findings": [asdict(finding) for finding in findings]}, indent=1
        )
    width = max(len(finding.check) for finding in findings)
    lines = [f"{finding.level:4}  {finding.check:{width}}  {finding.text}" for finding in findings]
    return "\n".join([*lines, f"verdict: {verdict(findings)}"])
