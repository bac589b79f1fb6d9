"""Checks what must hold in a run's logs, whatever the run did."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory import schema
from lsam_hpc.trajectory.log import BLOCK, RankLog
from lsam_hpc.trajectory.reader import Run
from lsam_hpc.trajectory.rows import Columns

_ALWAYS = ("step", "exchange", "dropped", "result")  # tables that every log has


def verify(run: Run) -> list[str]:
    """Return what is wrong with a run, a line each that names file and table; empty: nothing.

    Every row's check sum is computed, of sketches and snapshots too, and the numbers are compared with each other.

    Args:
        run: best opened with `partial=True`, so that what cannot be read is listed too.
    """
    found: list[str] = []
    for rank in run.ranks:
        log = run.logs[rank]
        always = _ALWAYS if log.version > 1 else _ALWAYS[:2]
        try:
            found += [f"{log.where}: {text}" for text in _head(log, run)]
            tables = [*always, *(name for name in log.tables if name not in always)]
        except InputError as error:
            found.append(str(error))
            tables = [*always]
        for name in tables:
            try:
                found += [f"{log.where}: {name}: {text}" for text in _table(log, name)]
            except InputError as error:
                found.append(str(error))
    return [*run.problems, *(text for text in found if text not in run.problems)]


def _head(log: RankLog, run: Run) -> Iterator[str]:
    first = run.logs[run.ranks[0]]
    for what, same in (
        ("layout", log.layout == first.layout),
        ("sketch map", log.sketcher == first.sketcher),
        *((name, log.attributes[name] == first.attributes[name]) for name in ("ranks", "config", "start_time")),
    ):
        if not same:
            yield f"expected the {what} of rank {first.rank}, found another"
    if run.config != json.loads(log.attributes["config"]):
        yield "expected the options of config.json, found others"


def _table(log: RankLog, name: str) -> Iterator[str]:
    table = log.table(name)
    if name == "step":
        lost = log.table("dropped")["rows"][-1:].sum() if log.version > 1 else 0
        yield from _steps(table, int(lost))
    elif name == "exchange":
        yield from _exchanges(table)
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
        yield f"expected every step, found {gaps} missing, and {lost} rows counted as lost"
    yield from _first("time", ~np.isfinite(table["time"]), "a finite time")


def _exchanges(table: Columns) -> Iterator[str]:
    yield from _rising("iteration", table["iteration"], 0)
    difference = table["version_added"] - table["version_read"]
    yield from _first("staleness", difference != table["staleness"], "version_added - version_read")
    yield from _first("staleness", table["staleness"] < 0, "0 or more")
    yield from _first("accepted", table["accepted"] > 1, "0 or 1")
    for column in ("seconds", "blocked", "delta_norm", "center_distance"):
        yield from _first(column, table[column] < 0, "0 or more")
    yield from _first("time", ~np.isfinite(table["time"]), "a finite time")


def _rising(column: str, values: NDArray[Any], by: int) -> Iterator[str]:
    yield from _first(column, np.concatenate([values[:1] < 0, np.diff(values) < by]), f"a rise by {by} or more")


def _first(column: str, wrong: NDArray[np.bool_], expected: str) -> Iterator[str]:
    if wrong.any():
        yield f"{column}: expected {expected}, found otherwise in {wrong.sum()} rows from row {wrong.argmax()} on"
