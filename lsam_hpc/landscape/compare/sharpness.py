"""Sharpness of several runs: the rise of the loss against the radius, in common axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from lsam_hpc.landscape.compare.comparison import Case, Comparison, cell, named
from lsam_hpc.landscape.figures.draw_curvature import draw_sharpness
from lsam_hpc.landscape.figures.stored import Stored, sharpness_of
from lsam_hpc.util.text import columns

KEYS = ("state", "case", "norm", "rho")
HEAD = (*KEYS, "sharpness", "standard_error", "loss")


def compare_sharpness(cases: Sequence[Case], numbers: Sequence[Stored], _: Mapping[str, Any]) -> Comparison:
    """Return the comparison of sharpness: a row for each definition, a column for each run."""
    names = named(cases)
    states = list(dict.fromkeys(state for stored in numbers for state in stored.arrays["state"]))
    panels: dict[str, dict[str, Any]] = {}
    values: dict[tuple[Any, ...], dict[str, str]] = {}
    table: dict[str, list[Any]] = {head: [] for head in ("run", "split", *HEAD)}
    for case, name, stored in zip(cases, names, numbers, strict=True):
        for panel, of_states in sharpness_of(stored).items():
            for state, curve in of_states.items():
                panels.setdefault(panel, {})[name if len(states) == 1 else f"{name}, {state}"] = curve
        rows = list(zip(*(list(stored.arrays[head]) for head in HEAD), strict=True))
        for row in rows:
            error = f" +- {row[5]:.2g}" if np.isfinite(row[5]) else ""
            values.setdefault(row[: len(KEYS)], {})[name] = f"{cell(float(row[4]))}{error}"
            for head, value in zip(table, (case.run, case.split, *row), strict=True):
                table[head].append(value)
    first = 0 if len(states) > 1 else 1
    lines = [[*KEYS[first:], *names]]
    for key, of_cases in values.items():
        lines.append([*key[first:-1], cell(float(key[-1])), *(of_cases.get(name, "-") for name in names)])
    return Comparison(columns(lines), table, partial(draw_sharpness, panels))
