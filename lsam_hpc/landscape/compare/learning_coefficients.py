"""Learning coefficients of several runs: estimates and chains on one scale, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lsam_hpc.landscape.compare.comparison import Case, Comparison, named, of_rows
from lsam_hpc.landscape.compare.parts import Part, pack, read_parts
from lsam_hpc.landscape.figures.draw_learning_coefficient import draw_learning_coefficients_of, estimates_of

KIND = "compare-learning-coefficient"
COLUMNS = ("lambda", "standard_error", "half_parameters", "loss", "rhat", "ess_bulk", "ess_tail", "acceptance")


def compare_learning_coefficients(cases: Sequence[Case], title: str) -> Comparison:
    """Return the comparison of learning coefficients, from the .h5 files: a row for each state of each case."""
    parts = read_parts(cases)
    rows = [row for part in parts for row in _rows(part)]
    numbers = pack(KIND, title, parts, ("state", "losses", *COLUMNS), ["inverse_temperature", "problems"])
    return Comparison(*of_rows(rows), partial(draw_parts, parts, title), numbers)


def draw_parts(parts: Sequence[Part], title: str, path: Path) -> Path:
    """Draw the comparison."""
    labels = named([part.case for part in parts])
    cases = {label: estimates_of(part.arrays, part.notes) for label, part in zip(labels, parts, strict=True)}
    return draw_learning_coefficients_of(cases, path, title)


def _rows(part: Part) -> list[dict[str, Any]]:
    return [
        {
            "run": part.case.run,
            "split": part.case.split,
            "state": name,
            **{column: float(part.arrays[column][i]) for column in COLUMNS},
            "problems": ", ".join(part.notes["problems"][name]),
        }
        for i, name in enumerate(part.arrays["state"])
    ]
