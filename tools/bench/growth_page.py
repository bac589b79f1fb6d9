"""The results of `lsam bench growth` as text, tables and a figure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from lsam_hpc.landscape.figures.figures import figure, save
from lsam_hpc.tools.bench.base import Report, Row, caption, markdown, number

TITLE = "Growth"
FIGURE = "growth"
LARGE = 1_000_000  # parameters, above which fixed costs are small
BEYOND = 10_000_000  # parameters, which fit in no cache
TIMES = ("memcpy ms", "SGD step ms", "LSAM step ms", "exchange ms", "held up ms")
OURS = ("memory", "LSAM step", "exchange", "held up")  # exponents of lsam-hpc; the others are baselines
CENTER, LIMIT = "center more, models", "center's limit, models"


def page(reports: Sequence[Report]) -> str:
    """Return the section of docs/explanation/performance.md; see `base.Benchmark`."""
    text: str = """\
Memory and time of a rank against the size of the model, with precomputed gradients. Memory is in models of 4 bytes per
parameter: SGD with momentum holds three (parameters, gradients, momentum); SAM, the center and the log's sketches add
to it. Shared memory is divided among the ranks. The aim for the center is two staging buffers and the rank's 1/R of y.
Times are of a copy of the model, and of a step with an exchange every 4 steps; "held up" is the training thread's part
of an exchange. All ranks work at once: if they outnumber the cores, they wait for a core.

"""
    for report in reports:
        text += f"{caption(report)}\n{markdown(report.rows)}\n"
    rows = [
        row for report in reports for row in report.rows if row["skipped"] == "" and float(row["parameters"]) >= LARGE
    ]
    if not rows:
        return text
    text += f"![memory and times against the number of parameters](figures/{FIGURE}.png)\n\n"
    most = max(float(row[CENTER]) / float(row[LIMIT]) for row in rows)
    met = "met" if most <= 1.02 else "**missed**"
    text += f"* From {LARGE:,} parameters on, the center holds at most {number(most)} of its limit of two buffers and "
    text += f"1/R of a model: {met}.\n"
    table = list(_exponents(reports))
    if not table:
        return text
    worst, name = max((float(row[name]), name) for row in table for name in OURS)
    linear = "nothing in lsam-hpc grows faster than linearly" if worst <= 1.1 else "**this is more than linear**"
    text += (
        f"* From {BEYOND:,} parameters on, the largest exponent of the size is {number(worst)} ({name}): {linear}.\n"
    )
    baseline, name = max((float(row[name]), name) for row in table for name in row if name not in (*OURS, "ranks"))
    text += f"* The largest exponent of the baselines is {number(baseline)} ({name}).\n"
    text += "\nExponents of the size from there on; 1 is linear. Smaller models fit partly in caches.\n\n"
    return f"{text}{markdown(table)}"


def draw(reports: Sequence[Report], path: Path) -> None:
    """Draw memory and times against the size, with a line for each number of ranks.

    Args:
        reports: reports of this benchmark.
        path: file for the figure, .png or .svg.
    """
    with figure(9.5, 3.4, cols=3) as (drawing, axes):
        axes = axes[0]
        for report in reports:
            rows = [row for row in report.rows if row["skipped"] == ""]
            sizes = np.array([float(row["parameters"]) for row in rows])
            count = int(report.machine["ranks"])
            memory = sizes * np.array([float(row[CENTER]) for row in rows]) * 4e-6
            label = f"{count} rank{'s' * (count > 1)}"
            axes[0].loglog(sizes, memory, ".-", label=label)
            for axis, name in zip(axes[1:], ("LSAM step ms", "exchange ms"), strict=True):
                axis.loglog(sizes, [float(row[name]) for row in rows], ".-")
        for axis, name in zip(axes, ("the center's memory per rank, MB", "LSAM step, ms", "exchange, ms"), strict=True):
            low, high = axis.get_xlim()
            bottom = axis.get_ylim()[0]
            axis.loglog([low, high], [bottom, bottom * high / low], "--", color="0.6", lw=0.8, label="linear")
            axis.set(xlabel="parameters", title=name, xlim=(low, high))
        axes[0].legend()
        save(drawing, path)


def _exponents(reports: Sequence[Report]) -> Iterator[Row]:
    for report in reports:
        rows = [r for r in report.rows if r["skipped"] == "" and float(r["parameters"]) >= BEYOND]
        if len(rows) < 2:
            continue
        sizes = np.array([float(row["parameters"]) for row in rows])
        exponents: Row = {"ranks": report.machine["ranks"]}
        exponents["memory"] = _slope(sizes, sizes * [float(row[CENTER]) for row in rows])
        for name in TIMES:
            exponents[name.removesuffix(" ms")] = _slope(sizes, [float(row[name]) for row in rows])
        yield exponents


def _slope(x: object, y: object) -> float:
    """Return the exponent of the power law fitted to points, by least squares of the logarithms."""
    return float(np.polyfit(np.log(np.asarray(x, float)), np.log(np.asarray(y, float)), 1)[0])
