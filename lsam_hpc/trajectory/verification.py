"""Checks that the rows of a run's logs are intact and consistent with each other."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory import schema
from lsam_hpc.trajectory.log import BLOCK, RankLog
from lsam_hpc.trajectory.reader import Run
from lsam_hpc.trajectory.rows import Columns

_ALWAYS = ("step", "exchange", "dropped", "result")  # tables in every log


def verify(run: Run, advance: Callable[[], object] = lambda: None) -> list[str]:
    """Return the errors of a run, one line each that names file and table; empty if there are none.

    The check sum of every row is computed, sketches and snapshots included, and the numbers are compared.

    Args:
        run: the run; if it was opened with `partial=True`, ranks and tables that cannot be read are listed too.
        advance: called after each rank. Default: does nothing.
    """
    errors: list[str] = []
    for rank in run.ranks:
        log = run.logs[rank]
        always = _ALWAYS if log.version > 1 else _ALWAYS[:2]
        try:
            errors += [f"{log.where}: {text}" for text in _head(log, run)]
            tables = [*always, *(name for name in log.tables if name not in always)]
        except InputError as error:
            errors.append(str(error))
            tables = [*always]
        for name in tables:
            try:
                errors += [f"{log.where}: {name}: {text}" for text in _table(log, name)]
            except InputError as error:
                errors.append(str(error))
        advance()
    return [*run.problems, *(text for text in errors if text not in run.problems)]


def _head(log: RankLog, run: Run) -> Iterator[str]:
    first = run.logs[run.ranks[0]]
    for name, equal in (
        ("layout", log.layout == first.layout),
        ("sketch map", log.sketcher == first.sketcher),
        *((key, log.attributes[key] == first.attributes[key]) for key in ("ranks", "config", "start_time")),
    ):
        if not equal:
            yield f"expected the {name} of rank {first.rank}, found another"
    if run.config != json.loads(log.attributes["config"]):
        yield "expected the options of config.json, found others"


def _table(log: RankLog, name: str) -> Iterator[str]:
    table = log.table(name)
    if name == "step":
        lost = log.table("dropped")["rows"][-1:].sum() if log.version > 1 else 0
        yield from _steps(table, int(lost))
    elif name == "exchange":
        yield from _exchanges(table)
    elif name == "curvature":
        yield from _rising("iteration", table["iteration"], 1)
        for column in ("eigenvalue", "residual"):
            yield from _report(column, ~np.isfinite(table[column]), "finite numbers")
    elif "/" in name:
        yield from _rising("iteration", table["iteration"], 0)
        row_size = math.prod(log.head.sizes[part] for part in schema.TABLES[name][-1].per)
        block = max(1, BLOCK // max(1, row_size))
        for row in range(0, len(table["iteration"]), block):
            log.values(name, slice(row, row + block))
    elif name == "dropped":
        for column, values in table.items():
            yield from _rising(column, values, 0)


def _steps(table: Columns, lost: int) -> Iterator[str]:
    yield from _rising("iteration", table["iteration"], 1)
    yield from _rising("total_iteration", table["total_iteration"], 1)
    gaps = int((np.diff(table["iteration"]) - 1).clip(0).sum())
    if gaps > lost:
        yield f"expected every step, found {gaps} missing, and {lost} rows counted in /dropped"
    yield from _report("time", ~np.isfinite(table["time"]), "a finite time")


def _exchanges(table: Columns) -> Iterator[str]:
    yield from _rising("iteration", table["iteration"], 0)
    difference = table["version_added"] - table["version_read"]
    yield from _report("staleness", difference != table["staleness"], "version_added - version_read")
    yield from _report("staleness", table["staleness"] < 0, "0 or more")
    yield from _report("accepted", table["accepted"] > 1, "0 or 1")
    for column in ("seconds", "blocked", "delta_norm", "center_distance"):
        yield from _report(column, table[column] < 0, "0 or more")
    yield from _report("time", ~np.isfinite(table["time"]), "a finite time")


def _rising(column: str, values: NDArray[Any], step: int) -> Iterator[str]:
    yield from _report(column, np.concatenate([values[:1] < 0, np.diff(values) < step]), f"a rise by {step} or more")


def _report(column: str, wrong: NDArray[np.bool_], expected: str) -> Iterator[str]:
    if wrong.any():
        yield f"{column}: expected {expected}, found other values in {wrong.sum()} rows from row {wrong.argmax()} on"
