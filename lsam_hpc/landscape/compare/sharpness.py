"""Sharpness of several runs: the rise of the loss against the radius, in common axes."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from lsam_hpc.landscape.compare.comparison import Case, Comparison, cell, named
from lsam_hpc.landscape.figures.draw_curvature import draw_sharpness
from lsam_hpc.util.text import columns

KEYS = ("state", "case", "norm", "rho")


def compare_sharpness(cases: Sequence[Case], *, adaptive: bool) -> Comparison:
    """Return the comparison of sharpness, from the .csv files: a row for each definition, a column for each run."""
    names = named(cases)
    rows = [(case, name, row) for case, name in zip(cases, names, strict=True) for row in _read(case)]
    states = list(dict.fromkeys(row["state"] for _, _, row in rows))
    panels: dict[str, dict[str, Any]] = {}
    values: dict[tuple[str, ...], dict[str, str]] = {}
    for _, name, row in rows:
        label = name if len(states) == 1 else f"{name}, {row['state']}"
        panel = panels.setdefault(f"{row['case']} case, {row['norm']}{', adaptive' if adaptive else ''}", {})
        numbers = (float(row["rho"]), float(row["sharpness"]), float(row["standard_error"] or "nan"))
        panel.setdefault(label, []).append(numbers)
        error = f" +- {numbers[2]:.2g}" if np.isfinite(numbers[2]) else ""
        values.setdefault(tuple(row[key] for key in KEYS), {})[name] = f"{cell(numbers[1])}{error}"
    shown = KEYS if len(states) > 1 else KEYS[1:]
    lines = [[*shown, *names]]
    for key, row in values.items():
        of_key = {**dict(zip(KEYS, key, strict=True)), "rho": cell(float(key[-1]))}
        lines.append([*(of_key[name] for name in shown), *(row.get(name, "-") for name in names)])
    arrays = {
        title: {label: tuple(np.array(numbers).T) for label, numbers in panel.items()}
        for title, panel in panels.items()
    }
    head = ("run", "split", *rows[0][2])
    table: dict[str, list[str]] = {name: [] for name in head}
    for case, _, row in rows:
        for name, value in zip(head, (case.run, case.split, *row.values()), strict=True):
            table[name].append(value)
    return Comparison(columns(lines), table, partial(draw_sharpness, arrays))


def _read(case: Case) -> list[dict[str, str]]:
    with case.file(".csv").open(newline="") as file:
        return list(csv.DictReader(file))
