"""Runs the cells of a suite one after the other, each once; an interrupted suite continues where it stopped."""

from __future__ import annotations

import json
import shlex
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from lsam_hpc.compare import measure
from lsam_hpc.compare.suite import Cell, Options, Suite, flags
from lsam_hpc.errors import InputError
from lsam_hpc.replay.bench import Point
from lsam_hpc.util.files import atomic_path

Record = Mapping[str, Any]  # what a cell's JSON file holds: cell, result, curve
SAME_SECONDS = "-seconds"  # appended to a budget's name: as many seconds as the reference took for it
CONFIG = "suite.json"  # in the results' folder: the suite that they belong to


def launcher(text: str) -> Callable[[int], list[str]]:
    """Return the function from a number of ranks to the command that starts such a job.

    Args:
        text: a command such as "mpirun -n {ranks}"; it is not run by a shell.

    Raises:
        InputError: `text` has no {ranks}, or there is no such program.
    """
    words = shlex.split(text)
    if not any("{ranks}" in word for word in words):
        raise InputError(f"--launcher: expected a command with {{ranks}} in it, found {text!r}")
    if shutil.which(words[0]) is None:
        raise InputError(f"--launcher: expected an installed program, found {words[0]!r}")
    return lambda ranks: [word.replace("{ranks}", str(ranks)) for word in words]


class SuiteRunner:
    """Runs cells and keeps the result of each in a folder.

    Args:
        suite: the suite to run.
        out: folder for the results; created if needed.
        start: see `launcher`.
        say: called with the name of each cell that starts.

    Raises:
        InputError: the folder has the results of another suite.
    """

    def __init__(self, suite: Suite, out: Path, start: Callable[[int], list[str]], say: Callable[[str], None]) -> None:
        self._suite, self._start, self._say = suite, start, say
        self._cells = out / "cells"
        self._cells.mkdir(parents=True, exist_ok=True)
        config, text = out / CONFIG, json.dumps(asdict(suite), indent=2) + "\n"
        if not config.exists():
            with atomic_path(config) as part:
                part.write_text(text)
        elif config.read_text() != text:
            raise InputError(f"--out: expected a folder with results of this suite, found another suite in {config}")

    def tuned(self) -> dict[str, Options]:
        """Run the tuning, and return the setting of each method with the lowest error on held-out images."""
        if self._suite.tune is None:
            return {}
        errors: dict[str, dict[int, list[float]]] = {}
        for record in self._all(self._suite.trials()):
            cell = record["cell"]
            trial_errors = errors.setdefault(cell["method"], {}).setdefault(cell["trial"], [])
            trial_errors.append(record["result"]["center_test_error"])
        best = {
            method: min(trials, key=lambda trial: statistics.fmean(trials[trial])) for method, trials in errors.items()
        }
        return {method: self._suite.tune.grids[method][trial] for method, trial in best.items()}

    def records(self, tuned: Mapping[str, Options]) -> list[Record]:
        """Run all cells at equal samples, and at equal seconds if the suite says so; return their results."""
        records = list(self._all(self._suite.cells(tuned)))
        if self._suite.equal_seconds:
            records += self._all(_same_seconds(records, self._suite))
        return records

    def trials(self) -> list[Record]:
        """Return the results of the tuning."""
        return list(self._all(self._suite.trials()))

    def _all(self, cells: Iterable[Cell]) -> Iterable[Record]:
        for cell in cells:
            yield self._one(cell)

    def _one(self, cell: Cell) -> Record:
        done = self._cells / f"{cell.name}.json"
        if not done.exists():
            self._run(cell, done)
        record: Record = json.loads(done.read_text())
        return record

    def _run(self, cell: Cell, done: Path) -> None:
        self._say(cell.name)
        result, curve = self._results(cell)
        with atomic_path(done) as part:
            part.write_text(json.dumps({"cell": asdict(cell), "result": result, "curve": curve}, indent=1) + "\n")

    def _results(self, cell: Cell) -> tuple[dict[str, Any], list[Point]]:
        """Run a cell; return its results and its curve."""
        measured = run_cell(cell, self._suite, self._cells, self._start)
        shutil.rmtree(self._cells / cell.name)
        return measured


def run_cell(
    cell: Cell, suite: Suite, folder: Path, start: Callable[[int], list[str]], seconds: float | None = None
) -> tuple[dict[str, Any], list[Point]]:
    """Train a cell and return its results and curve; the run directory FOLDER/NAME and the log FOLDER/NAME.log remain.

    Args:
        cell: the cell.
        suite: its suite.
        folder: an existing folder.
        start: see `launcher`.
        seconds: time limit of the job. Default: none.

    Raises:
        InputError: the job failed.
        subprocess.TimeoutExpired: the time limit was reached; the launcher is killed then.
    """
    run_dir, log = folder / cell.name, folder / f"{cell.name}.log"
    interval = measure.interval(cell, suite.points)
    command = [
        *start(cell.ranks),
        sys.executable,
        "-m",
        "lsam_hpc",
        "train",
        *flags(cell.options),
        f"--seed={cell.seed}",
        f"--stragglers={cell.stragglers}",
        f"--snapshot-every={interval}",
        "--snapshot-states=center",
        "--snapshot-ranks=first",
        f"--out={run_dir}",
        "--overwrite",
    ]
    with log.open("w") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, timeout=seconds).returncode
    if code:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        raise InputError(f"{cell.name}: expected exit code 0, found {code}: {' '.join(last)} ({log})")
    return measure.measure(run_dir, cell, suite)


def _same_seconds(records: Iterable[Record], suite: Suite) -> Iterable[Cell]:
    """Yield each record's cell with as many steps as fit into the seconds that the reference took."""
    reference: dict[tuple[str, str, int], list[float]] = {}
    records = list(records)
    for record in records:
        if record["cell"]["method"] == suite.reference:
            reference.setdefault(_group(record), []).append(record["result"]["seconds"])
    for record in records:
        cell = Cell(**record["cell"])
        target = statistics.fmean(reference[_group(record)])
        steps = max(1, round(record["result"]["total_steps"] * target / record["result"]["seconds"]))
        options = {name: value for name, value in cell.options.items() if name != "epochs"} | {"steps": steps}
        yield replace(cell, budget=cell.budget + SAME_SECONDS, options=options)


def _group(record: Record) -> tuple[str, str, int]:
    return Cell(**record["cell"]).group
