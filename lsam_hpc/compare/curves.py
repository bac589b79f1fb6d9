"""Curves of a suite: the center's test error against epochs and against seconds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.compare.run import Record
from lsam_hpc.compare.suite import slug
from lsam_hpc.compare.tables import groups
from lsam_hpc.landscape.figures.figures import COLOURS, figure, save

AXES = {"epochs": "epochs, all ranks together", "seconds": "seconds of training"}


def draw(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw a figure per budget, stragglers and ranks: two panels, a line and a band of one standard error per method.

    Args:
        records: records of the runs.
        folder: folder for the figures.

    Returns:
        Their paths.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    paths = []
    for (budget, stragglers, ranks), methods in groups(records).items():
        slow = "" if stragglers == "none" else f"-{slug(stragglers)}"
        path = folder / f"{budget}-np{ranks}{slow}.png"
        with figure(9.0, 4.0, 1, 2) as (drawn, ((by_epochs, by_seconds),)):
            for panel, (axis, label) in zip((by_epochs, by_seconds), AXES.items(), strict=True):
                for number, (method, runs) in enumerate(methods.items()):
                    at, mean, error = band(runs, axis)
                    style = "-" if number < len(COLOURS) else "--"
                    (line,) = panel.plot(at, mean, style, label=f"{method} ({_final(runs):.2f})")
                    panel.fill_between(at, mean - error, mean + error, color=line.get_color(), alpha=0.2, linewidth=0)
                panel.set(xlabel=label, yscale="log")
                panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
                panel.yaxis.set_major_formatter("{x:g}")
                panel.yaxis.set_minor_locator(NullLocator())
            by_epochs.set_ylabel("test error of the center, %")
            by_seconds.sharey(by_epochs)
            by_seconds.legend(title="method (test error at the end, %)", loc="center left", bbox_to_anchor=(1.0, 0.5))
            drawn.suptitle(f"{budget}, {ranks} ranks" + (f", stragglers {stragglers}" if slow else ""))
            paths.append(save(drawn, path))
    return paths


def _final(records: Sequence[Record]) -> float:
    return statistics.fmean(record["result"]["center_test_error"] for record in records)


def band(records: Sequence[Record], axis: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return positions, means and standard errors of curves whose points are at slightly different positions.

    The curves are interpolated between their latest first and their earliest last position.
    """
    curves = [[(point[axis], point["test_error"]) for point in record["curve"]] for record in records]
    columns = [tuple(np.array(column) for column in zip(*curve, strict=True)) for curve in curves]
    begin, end = max(x[0] for x, _ in columns), min(x[-1] for x, _ in columns)
    at = np.linspace(begin, end, max(len(x) for x, _ in columns))
    values = np.array([np.interp(at, x, y) for x, y in columns])
    error = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros_like(at)
    return at, values.mean(0), error
