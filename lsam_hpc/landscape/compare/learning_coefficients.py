"""Learning coefficients of several runs: estimates and chains on one scale, and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lsam_hpc.landscape.compare.comparison import Case, Comparison, named, of_rows
from lsam_hpc.landscape.figures.draw_learning_coefficient import draw_learning_coefficients_of, estimates_of
from lsam_hpc.landscape.figures.stored import Stored

COLUMNS = ("lambda", "standard_error", "half_parameters", "loss", "rhat", "ess_bulk", "ess_tail", "acceptance")


def compare_learning_coefficients(
    cases: Sequence[Case], numbers: Sequence[Stored], how: Mapping[str, Any]
) -> Comparison:
    """Return the comparison of learning coefficients, a row for each state of each case; `how` has the title."""
    rows = [row for case, part in zip(cases, numbers, strict=True) for row in _rows(case, part)]
    drawn = {name: estimates_of(part.arrays, part.notes) for name, part in zip(named(cases), numbers, strict=True)}
    return Comparison(*of_rows(rows), partial(draw_learning_coefficients_of, drawn, title=how["title"]))


def _rows(case: Case, part: Stored) -> list[dict[str, Any]]:
    return [
        {
            "run": case.run,
            "split": case.split,
            "state": name,
            **{column: float(part.arrays[column][i]) for column in COLUMNS},
            "problems": ", ".join(part.notes["problems"][name]),
        }
        for i, name in enumerate(part.arrays["state"])
    ]
