"""Runs MPI tests in one job per MPI and number of ranks, because Python and torch take seconds to start on each rank.

Each rank runs the body of each test and writes a report, from which pytest's process makes the test's outcome. A rank
that exceeds the time limit of a test dumps its stacks; the report names the test and the ranks that hung. A test that
fails ends its job, and the tests after it run in a new job.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.helpers.mpis import ROOT, Mpi, run

LIMIT = 240.0  # seconds for one test on all ranks


@dataclass(frozen=True)
class Report:
    """A rank's outcome: "started" and not finished, finished and "waiting" for other ranks, "passed" or "failed"."""

    outcome: str
    text: str
    seconds: float


def key(file: Path, name: str) -> str:
    """Return the name of a test's folder and reports."""
    return ".".join([*file.relative_to(ROOT).with_suffix("").parts, name])


class Batch:
    """The outcomes of one batch.

    Args:
        mpi: to run on.
        ranks: their number.
        tests: the file and the name of each test function, in order.
        folder: for the reports.
    """

    def __init__(self, mpi: Mpi, ranks: int, tests: Sequence[tuple[Path, str]], folder: Path) -> None:
        self.ranks = ranks
        self.folder = folder
        self.output: dict[str, str] = {}
        remaining = [f"{file}::{name}" for file, name in tests]
        keys = [key(file, name) for file, name in tests]
        while remaining:
            output = self._job(mpi, remaining)
            ended = next((i for i, name in enumerate(keys) if not self.passed(name)), len(keys) - 1) + 1
            self.output |= dict.fromkeys(keys[:ended], output)
            remaining, keys = remaining[ended:], keys[ended:]

    def _job(self, mpi: Mpi, tests: Sequence[str]) -> str:
        words = [mpi.forked, "-m", "mpi4py", "-m", "tests.helpers.ranks", str(self.folder), str(LIMIT), *tests]
        try:
            done = run(mpi.command(self.ranks, *words), timeout=LIMIT * len(tests) + 60)
            return f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        except subprocess.TimeoutExpired as error:
            return f"the job did not end\n{error.output}\n{error.stderr}"

    def passed(self, name: str) -> bool:
        """Return whether every rank passed the test with this key."""
        return all(report is not None and report.outcome == "passed" for _, report in self.reports(name))

    def seconds(self, name: str) -> float:
        """Return how long the test with this key took on the slowest rank."""
        return max((report.seconds for _, report in self.reports(name) if report is not None), default=0.0)

    def failure(self, name: str) -> str | None:
        """Return why the test with this key failed, or None if every rank passed it."""
        if self.passed(name):
            return None
        lines = []
        for rank, report in self.reports(name):
            if report is None:
                lines.append(f"rank {rank}: did not reach this test")
            elif report.outcome == "started":
                lines.append(f"rank {rank}: HUNG or died in this test")
            elif report.outcome == "waiting":
                lines.append(f"rank {rank}: finished the test and waited for the others")
            elif report.outcome == "failed":
                lines.append(f"rank {rank}: failed\n{report.text}")
        return "\n".join([*lines, "--- the job's output", self.output[name][-6000:]])

    def reports(self, name: str) -> Iterator[tuple[int, Report | None]]:
        """Yield each rank's report of the test with this key."""
        for rank in range(self.ranks):
            path = self.folder / f"{name}-{rank}.json"
            yield rank, Report(**json.loads(path.read_text())) if path.exists() else None
