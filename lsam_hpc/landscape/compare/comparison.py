"""What a comparison of runs consists of: cases with a label and a style each, a table, and a figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.figures.figures import COLOURS
from lsam_hpc.landscape.figures.stored import Stored
from lsam_hpc.util.text import columns

BRIGHT = COLOURS[:7]  # without yellow, which is too light for a line
TEST = "test"


@dataclass(frozen=True)
class Case:
    """A run on a split of its data, and the file that holds its numbers.

    Args:
        run: label of the run.
        split: train or test; empty if the numbers are of no data.
        number: of the run among those that are compared, for its colour.
        base: path of its files without suffix.
        alone: whether numbers of this run alone exist. Default: True.
    """

    run: str
    split: str
    number: int
    base: Path
    alone: bool = True

    def file(self, suffix: str) -> Path:
        """Return the path of one of its files."""
        return self.base.with_name(self.base.name + suffix)

    @property
    def style(self) -> dict[str, Any]:
        """Colour and line style: a colour for each run, dashed lines for test data."""
        return {
            "color": BRIGHT[self.number % len(BRIGHT)],
            "linestyle": "--" if self.split == TEST else ("-", "-.", ":")[self.number // len(BRIGHT) % 3],
        }


@dataclass(frozen=True)
class Comparison:
    """A table as text, its numbers as columns, and a function that draws the figure.

    Args:
        table: as text.
        columns: of the table.
        draw: draws the figure.
    """

    table: str
    columns: Mapping[str, Sequence[Any]]
    draw: Callable[[Path], Path]


def run_labels(paths: Sequence[Path]) -> list[str]:
    """Return the shortest part of each path that tells it from the others: last folders, without common ends.

    Raises:
        InputError: a run is given twice.
    """
    parts = [path.resolve().parts for path in paths]
    for i, path in enumerate(parts):
        if path in parts[:i]:
            raise InputError(f"RUN: expected different runs, found {paths[i]} twice")
    if len(parts) == 1:
        return [parts[0][-1]]
    last = next(n for n in range(1, max(map(len, parts)) + 1) if len({path[-n:] for path in parts}) == len(parts))
    names = [path[-last:] for path in parts]
    while min(map(len, names)) > 1 and len({name[-1] for name in names}) == 1:
        names = [name[:-1] for name in names]
    return ["/".join(name).lstrip("/") or "/" for name in names]


def named(cases: Sequence[Case]) -> list[str]:
    """Return the name of each case: that of its run, and of its split if there are several."""
    several = len({case.split for case in cases}) > 1
    return [f"{case.run}, {case.split}" if several else case.run for case in cases]


def first_of(case: Case, cases: Sequence[Case], numbers: Sequence[Stored]) -> Stored | None:
    """Return the numbers of the first run on the case's split; None if that is the case itself, or of other data."""
    splits = [other.split for other in cases]
    first, own = splits.index(case.split), cases.index(case)
    return numbers[first] if first != own and numbers[first].notes["data"] == numbers[own].notes["data"] else None


def of_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, list[Any]]]:
    """Return rows of equal keys as a text table, without columns that are empty or of one split, and as columns."""
    table = {name: [row[name] for row in rows] for name in rows[0]}
    shown = {name: values for name, values in table.items() if any(cell(v) != "-" for v in values)}
    if len({row.get("split") for row in rows}) == 1:
        shown.pop("split", None)
    lines = [tuple(shown), *zip(*(map(cell, values) for values in shown.values()), strict=True)]
    return columns([[text.replace("_", " ") for text in lines[0]], *lines[1:]]), table


def cell(value: Any) -> str:  # noqa: ANN401 (any cell)
    """Return a value of a table as text; a dash for one that is empty or not a number."""
    if value is None or value == "" or (isinstance(value, (float, np.floating)) and math.isnan(value)):
        return "-"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    return value if isinstance(value, str) else f"{value:.5g}"
