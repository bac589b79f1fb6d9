"""What the numbers of a run depend on: stored beside them, so that they need not be computed again."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lsam_hpc
from lsam_hpc.errors import InputError
from lsam_hpc.landscape.compare.comparison import Case
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.report.tables import places
from lsam_hpc.tools.ranks import digest, objective_options
from lsam_hpc.trajectory import Run
from lsam_hpc.util.files import replace_file

# Options that do not change the numbers.
APART = ("run", "out", "name", "format", "overwrite", "quiet", "partial", "with_both", "runs")


@dataclass(frozen=True)
class Prepared:
    """A run whose options and states have been checked.

    Args:
        run: the run.
        objective: f; None if the numbers need none.
        states: that the numbers are of, shape (P,) each.
        own: options that the run sets if the command line does not: a difference between runs is reported.
        alone: whether the program can be run on this run alone. Default: True.
    """

    run: Run
    objective: Objective | None = None
    states: Sequence[NDArray[Any]] = ()
    own: Mapping[str, Any] = field(default_factory=dict)
    alone: bool = True


def facts_of(prepared: Prepared, options: argparse.Namespace) -> dict[str, Any]:
    """Return what the numbers of a run depend on.

    Raises:
        InputError: the loss is not finite.
    """
    run, objective = prepared.run, prepared.objective
    logs = {rank: run.log(rank) for rank in run.ranks}
    facts: dict[str, Any] = {
        "version": lsam_hpc.__version__,
        "options": {name: value for name, value in vars(options).items() if name not in APART},
        "run": str(run.path.resolve()),
        "layout": [[name, list(shape)] for name, shape, _ in run.layout],
        "own": dict(prepared.own),
        "alone": prepared.alone,
        "states": digest(*prepared.states),
        "rows": {str(rank): log.counts() for rank, log in logs.items()},
        "data_set": None,
        "objective": None,
    }
    if objective is not None:
        given = options.make_batches or options.data
        facts["data_set"] = given or run.config.get("data")
        loss = [objective(objective.vector(x)).loss for x in prepared.states[:1]]
        if not np.isfinite(loss).all():
            raise InputError(f"loss: expected a finite number at the given state, found {loss[0]}")
        facts["objective"] = {**objective_options(options, objective), "values": loss}
    as_stored: dict[str, Any] = json.loads(json.dumps(facts))
    return as_stored


def differences(cases: Sequence[Case], facts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return what makes a comparison of runs less than exact, a line each."""
    lines = []
    for case, fact in zip(cases, facts, strict=True):
        if case.number == 0:
            continue
        first = next(i for i, other in enumerate(cases) if other.split == case.split)
        other = facts[first]
        both = f"{cases[first].run} and {case.run}"
        if fact["layout"] != other["layout"]:
            lines.append(f"{both} have different models: distances and curvatures depend on the parametrization")
        if fact["objective"] and fact["objective"]["data"] != other["objective"]["data"]:
            which = f"{fact['objective']['split'] or ''} samples".lstrip()
            lines.append(f"{both} have different {which}: compare them with care")
        lines += [
            f"{name}: {other['own'][name]:g} in {cases[first].run}, {value:g} in {case.run}: --{name} sets one for all"
            for name, value in fact["own"].items()
            if value != other["own"].get(name, value)
        ]
    return list(dict.fromkeys(lines))


def is_known(case: Case, facts: Mapping[str, Any], suffixes: Sequence[str], *, overwrite: bool) -> bool:
    """Return whether a case's files hold the numbers of these facts.

    Raises:
        InputError: files of other numbers exist, and may not be overwritten.
    """
    try:
        record = json.loads(_record(case, suffixes).read_text())
    except (OSError, ValueError):
        record = {}
    if record == {"facts": facts, "files": _hashes(case, suffixes)}:
        return True
    if facts["alone"]:
        places(case.base.parent, case.base.name, suffixes, overwrite=overwrite)
    return False


def keep(case: Case, facts: Mapping[str, Any], suffixes: Sequence[str]) -> None:
    """Write what the numbers of a case depend on beside them."""
    text = json.dumps({"facts": facts, "files": _hashes(case, suffixes)}, indent=1) + "\n"
    replace_file(_record(case, suffixes), lambda file: file.write(text.encode()))


def _record(case: Case, suffixes: Sequence[str]) -> Path:
    return case.file(f"{suffixes[0].partition('.')[0]}-compare.json")


def _hashes(case: Case, suffixes: Sequence[str]) -> dict[str, str]:
    files = {suffix: case.file(suffix) for suffix in suffixes}
    return {suffix: hashlib.sha256(f.read_bytes()).hexdigest() for suffix, f in files.items() if f.exists()}
