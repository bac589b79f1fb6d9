"""Outliers of several runs: the losses of all samples before and after on one scale, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.landscape.compare.comparison import Case, Comparison, named, of_rows
from lsam_hpc.landscape.compare.parts import Part, pack, read_parts
from lsam_hpc.landscape.figures.draw_outliers import draw_outliers_of, outliers_of

KIND = "compare-outliers"


def compare_outliers(cases: Sequence[Case], title: str) -> Comparison:
    """Return the comparison of outliers, from the .h5 files: a row for each case."""
    parts = read_parts(cases)
    rows = [_numbers(part, parts) for part in parts]
    numbers = pack(KIND, title, parts, parts[0].arrays, ["between"])
    return Comparison(*of_rows(rows), partial(draw_parts, parts, title), numbers)


def draw_parts(parts: Sequence[Part], title: str, path: Path) -> Path:
    """Draw the comparison."""
    labels = named([part.case for part in parts])
    cases = {
        label: (outliers_of(part.arrays), (part.notes["between"][0], part.notes["between"][1]))
        for label, part in zip(labels, parts, strict=True)
    }
    return draw_outliers_of(cases, path, title)


def _numbers(part: Part, parts: Sequence[Part]) -> dict[str, Any]:
    result = outliers_of(part.arrays)
    shown = {*result.rising.tolist(), *result.falling.tolist()}
    first = next(other for other in parts if other.case.split == part.case.split)
    of_first = outliers_of(first.arrays)
    same = first is not part and first.notes["data"] == part.notes["data"]
    cosines = [float(result.cosines[pair]) for pair in result.pairs]
    return {
        "run": part.case.run,
        "split": part.case.split,
        "from": part.notes["between"][0],
        "to": part.notes["between"][1],
        "loss_before": float(result.before.mean()),
        "loss_after": float(result.after.mean()),
        "rising": int(np.count_nonzero(result.change > 0)),
        "falling": int(np.count_nonzero(result.change < 0)),
        "outliers": len(shown),
        "%_of_all_changes": 100 * result.share,
        "opposed_pairs": len(result.pairs),
        "smallest_cosine": min(cosines, default=np.nan),
        "outliers_of_the_first_run": len(shown & {*of_first.rising.tolist(), *of_first.falling.tolist()})
        if same
        else np.nan,
    }
