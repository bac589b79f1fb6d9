"""Runs the cells of a suite one after the other, each once: a suite that was interrupted goes on where it was."""

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
from lsam_hpc.files import appearing

Record = Mapping[str, Any]  # what a cell's JSON file holds: cell, result, curve
SAME_SECONDS = "-seconds"  # behind the name of a budget: as many seconds as the reference took for it
CONFIG = "suite.json"  # in the suite's folder: what its cells were run with


def launcher(text: str) -> Callable[[int], list[str]]:
    """Return the function from a number of ranks to the words that start a job of so many.

    Args:
        text: as "mpirun -n {ranks}"; no shell sees it.

    Raises:
        InputError: there is no {ranks} in it, or no such program.
    """
    words = shlex.split(text)
    if not any("{ranks}" in word for word in words):
        raise InputError(f"--launcher: expected words with {{ranks}} in them, found {text!r}")
    if shutil.which(words[0]) is None:
        raise InputError(f"--launcher: expected a program that is there, found {words[0]!r}")
    return lambda ranks: [word.replace("{ranks}", str(ranks)) for word in words]


class Runner:
    """Runs cells and keeps what came of each in a folder.

    Args:
        suite: of the cells.
        out: the folder; made if need be.
        start: see `launcher`.
        say: is told, a line each, what goes on.

    Raises:
        InputError: the folder holds the results of another suite.
    """

    def __init__(self, suite: Suite, out: Path, start: Callable[[int], list[str]], say: Callable[[str], None]) -> None:
        self._suite, self._start, self._say = suite, start, say
        self._cells = out / "cells"
        self._cells.mkdir(parents=True, exist_ok=True)
        kept, text = out / CONFIG, json.dumps(asdict(suite), indent=2) + "\n"
        if not kept.exists():
            with appearing(kept) as part:
                part.write_text(text)
        elif kept.read_text() != text:
            raise InputError(f"--out: expected the folder of this suite, found another one's in {kept}")

    def tuned(self) -> dict[str, Options]:
        """Return, by method, the setting that is best on held-out images, after the runs that tell."""
        if self._suite.tune is None:
            return {}
        errors: dict[str, dict[int, list[float]]] = {}
        for record in self._all(self._suite.trials()):
            cell = record["cell"]
            found = errors.setdefault(cell["method"], {}).setdefault(cell["trial"], [])
            found.append(record["result"]["center_test_error"])
        best = {method: min(trials, key=lambda trial: statistics.fmean(trials[trial])) for method, trials in
                errors.items()}  # fmt: skip
        return {method: self._suite.tune.grids[method][trial] for method, trial in best.items()}

    def records(self, tuned: Mapping[str, Options]) -> list[Record]:
        """Return what came of all cells at equal samples, and at equal seconds if the suite says so."""
        found = list(self._all(self._suite.cells(tuned)))
        if self._suite.equal_seconds:
            found += self._all(_same_seconds(found, self._suite))
        return found

    def trials(self) -> list[Record]:
        """Return what came of the tuning's runs that are done."""
        return list(self._all(self._suite.trials()))

    def _all(self, cells: Iterable[Cell]) -> Iterable[Record]:
        for cell in cells:
            yield self._one(cell)

    def _one(self, cell: Cell) -> Record:
        done = self._cells / f"{cell.name}.json"
        if not done.exists():
            self._run(cell, done)
        found: Record = json.loads(done.read_text())
        return found

    def _run(self, cell: Cell, done: Path) -> None:
        run_dir, log = self._cells / cell.name, self._cells / f"{cell.name}.log"
        self._say(cell.name)
        interval = measure.interval(cell, self._suite.points)
        command = [
            *self._start(cell.ranks), sys.executable, "-m", "lsam_hpc", "train", *flags(cell.options),
            f"--seed={cell.seed}", f"--stragglers={cell.stragglers}", f"--snapshot-every={interval}",
            "--snapshot-states=center", "--snapshot-ranks=first", f"--out={run_dir}", "--overwrite",
        ]  # fmt: skip
        with log.open("w") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
        if code:
            last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
            raise InputError(f"{cell.name}: expected a run that ends with 0, found {code}: {' '.join(last)} ({log})")
        result, curve = measure.measure(run_dir, cell, self._suite)
        with appearing(done) as part:
            part.write_text(json.dumps({"cell": asdict(cell), "result": result, "curve": curve}, indent=1) + "\n")
        shutil.rmtree(run_dir)


def _same_seconds(records: Iterable[Record], suite: Suite) -> Iterable[Cell]:
    """Yield a cell for each that took another time than the reference did, with steps for as many seconds."""
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
