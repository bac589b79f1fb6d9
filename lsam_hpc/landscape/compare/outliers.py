"""Outliers of several runs: the losses of all samples before and after on one scale, and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from lsam_hpc.landscape.compare.comparison import Case, Comparison, first_of, named, of_rows
from lsam_hpc.landscape.figures.draw_outliers import draw_outliers_of, outliers_of
from lsam_hpc.landscape.figures.stored import Stored


def compare_outliers(cases: Sequence[Case], numbers: Sequence[Stored], how: Mapping[str, Any]) -> Comparison:
    """Return the comparison of outliers, a row for each case; `how` has the title."""
    rows = [_numbers(case, part, first_of(case, cases, numbers)) for case, part in zip(cases, numbers, strict=True)]
    drawn = {
        label: (outliers_of(part.arrays), (part.notes["between"][0], part.notes["between"][1]))
        for label, part in zip(named(cases), numbers, strict=True)
    }
    return Comparison(*of_rows(rows), partial(draw_outliers_of, drawn, title=how["title"]))


def _numbers(case: Case, part: Stored, first: Stored | None) -> dict[str, Any]:
    result = outliers_of(part.arrays)
    shown = {*result.rising.tolist(), *result.falling.tolist()}
    of_first = first and outliers_of(first.arrays)
    cosines = [float(result.cosines[pair]) for pair in result.pairs]
    return {
        "run": case.run,
        "split": case.split,
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
        if of_first
        else np.nan,
    }
