"""Tables of a suite's results: means and standard errors over the seeds, against the reference."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from lsam_hpc.compare.run import Record
from lsam_hpc.compare.suite import Cell, settings
from lsam_hpc.util.files import atomic_path

Group = tuple[str, str, int]  # budget, stragglers, ranks
CELL = ("budget", "stragglers", "ranks", "method", "seed")


def groups(records: Iterable[Record]) -> dict[Group, dict[str, list[Record]]]:
    """Return group -> method -> its records, one per seed; methods of a group are compared with each other."""
    by_group: dict[Group, dict[str, list[Record]]] = {}
    for record in records:
        cell = Cell(**record["cell"])
        by_group.setdefault(cell.group, {}).setdefault(cell.method, []).append(record)
    return by_group


def markdown(records: Iterable[Record], reference: str) -> str:
    """Return a table for each group as Markdown, the best error of each in bold.

    Args:
        records: records of the runs.
        reference: the method that the others are compared with.
    """
    parts = []
    for (budget, stragglers, ranks), methods in groups(records).items():
        slow = "" if stragglers == "none" else f", stragglers {stragglers}"
        parts.append(f"**{budget}, {ranks} ranks{slow}**\n\n" + _table(methods, reference))
    return "\n\n".join(parts) + "\n"


def overview(records: Iterable[Record], reference: str) -> str:
    """Return a table for each budget as Markdown: a row per method, a column per stragglers and ranks.

    A cell is the mean test error in %, its standard error, and the difference to the reference in units of its standard
    error; the best of a column is in bold.

    Args:
        records: records of the runs.
        reference: the method that the others are compared with.
    """
    budgets: dict[str, dict[Group, dict[str, list[Record]]]] = {}
    for group, methods in groups(records).items():
        budgets.setdefault(group[0], {})[group] = methods
    parts = []
    for budget, columns in budgets.items():
        names = [f"{ranks} ranks" + f", {slow}" * (slow != "none") for _, slow, ranks in columns]
        rows = [["test error %", *names], ["---"] * (1 + len(names))]
        for method in next(iter(columns.values())):
            rows.append([method, *(_overview_cell(methods, method, reference) for methods in columns.values())])
        parts.append(f"**{budget}**\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in rows))
    return "\n\n".join(parts) + "\n"


def _overview_cell(methods: dict[str, list[Record]], method: str, reference: str) -> str:
    errors = {name: _values(runs, "center_test_error") for name, runs in methods.items()}
    text = mean_and_error(errors[method])
    if statistics.fmean(errors[method]) == min(map(statistics.fmean, errors.values())):
        text = f"**{text}**"
    difference = statistics.fmean(errors[method]) - statistics.fmean(errors[reference])
    error = math.hypot(standard_error(errors[method]), standard_error(errors[reference]))
    return text if method == reference or not error > 0 else f"{text} ({difference / error:+.1f})"


def _table(methods: dict[str, list[Record]], reference: str) -> str:
    target = statistics.fmean(_points(record)[-1]["test_error"] for record in methods[reference])
    flat = any("sharpness" in record["result"] for runs in methods.values() for record in runs)
    head = [
        "method",
        "test error %",
        f"against {reference}",
        "train loss",
        "seconds",
        "images/s",
        f"seconds to the error of {reference}",
        *(["sharpness", "top eigenvalue"] if flat else []),
        "settings",
    ]
    best = min(statistics.fmean(_values(runs, "center_test_error")) for runs in methods.values())
    rows = []
    for method, runs in methods.items():
        errors = _values(runs, "center_test_error")
        error = mean_and_error(errors)
        row = [method, f"**{error}**" if statistics.fmean(errors) == best else error]
        row.append("" if method == reference else _against(errors, _values(methods[reference], "center_test_error")))
        row += [mean_and_error(_values(runs, "center_train_loss"), 4), mean_and_error(_values(runs, "seconds"), 1)]
        row += [f"{statistics.fmean(_values(runs, 'images_per_second')):.0f}", _reached(runs, target)]
        row += [f"{statistics.fmean(_values(runs, name)):.3g}" for name in ("sharpness", "top_eigenvalue") if flat]
        rows.append([*row, settings(Cell(**runs[0]["cell"]))])
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def mean_and_error(values: Sequence[float], digits: int = 2) -> str:
    """Return a mean and its standard error as text; without the error if there is one value only."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {standard_error(values):.{digits}f}" if len(values) > 1 else mean


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean of independent values; NaN of fewer than two."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def seconds_to(record: Record, target: float) -> float:
    """Return the seconds of training until the center's error is at most the target; infinity if never.

    Args:
        record: record of the run.
        target: error in % on the test images of the curve.
    """
    return min((point["seconds"] for point in _points(record) if point["test_error"] <= target), default=math.inf)


def _points(record: Record) -> list[dict[str, float]]:
    """Return a run's curve; without one, its end is the only point."""
    result = record["result"]
    return record["curve"] or [{"seconds": result["seconds"], "test_error": result["center_test_error"]}]


def _reached(records: Sequence[Record], target: float) -> str:
    times = [seconds_to(record, target) for record in records]
    reached = [time for time in times if time < math.inf]
    if len(reached) == len(times):
        return f"{statistics.median(times):.1f}"
    return f"{len(reached)} of {len(times)} runs" if reached else "never"


def _against(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """Return the relative difference of two means, and the difference in standard errors."""
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    relative = f"{100 * difference / statistics.fmean(theirs):+.1f} %" if statistics.fmean(theirs) else ""
    if len(ours) < 2 or len(theirs) < 2:
        return relative
    error = math.hypot(standard_error(ours), standard_error(theirs))
    return f"{relative} ({abs(difference) / error:.1f} s.e.)" if error else relative


def _values(records: Sequence[Record], name: str) -> list[float]:
    return [record["result"].get(name, math.nan) for record in records]


def write_runs(records: Sequence[Record], path: Path) -> None:
    """Write a row per run as CSV."""
    rows = [{**_cell(record), "settings": settings(Cell(**record["cell"])), **record["result"]} for record in records]
    _write(rows, path)


def write_curves(records: Sequence[Record], path: Path) -> None:
    """Write a row per point of a curve as CSV."""
    _write([{**_cell(record), **point} for record in records for point in record["curve"]], path)


def _cell(record: Record) -> dict[str, object]:
    return {name: record["cell"][name] for name in CELL}


def _write(rows: Sequence[dict[str, object]], path: Path) -> None:
    path.unlink(missing_ok=True)
    with atomic_path(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()})
