"""Predictions of several runs: their reliability diagrams over each other, and their scores in a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lsam_hpc.landscape.compare.comparison import Case, Comparison, first_of, named, of_rows
from lsam_hpc.landscape.figures.draw_reliability import Predicted, draw_reliability_of, panels_of
from lsam_hpc.landscape.figures.stored import Stored
from lsam_hpc.landscape.prediction.calibration import Scores


def compare_predictions(cases: Sequence[Case], numbers: Sequence[Stored], how: Mapping[str, Any]) -> Comparison:
    """Return the comparison of predictors, a row for each predictor of each case; `how` has the title."""
    each = list(zip(cases, numbers, strict=True))
    rows = [row for case, part in each for row in _rows(case, part, first_of(case, cases, numbers))]
    drawn = [Predicted(name, c.style, _predictors(p)) for name, (c, p) in zip(named(cases), each, strict=True)]
    return Comparison(*of_rows(rows), partial(draw_reliability_of, drawn, title=how["title"]))


def _predictors(part: Stored) -> dict[str, Scores]:
    """Return the scores by the kind of the predictor, which has no numbers of ranks."""
    kinds = [name.partition(",")[0] for name in part.arrays["predictor"]]
    return dict(zip(kinds, panels_of(part.arrays).values(), strict=True))


def _rows(case: Case, part: Stored, first: Stored | None) -> list[dict[str, Any]]:
    of_first = _predictors(first) if first else {}
    rows = []
    for i, (kind, scores) in enumerate(_predictors(part).items()):
        difference, error = math.nan, math.nan
        if kind in of_first:
            gaps = scores.losses - of_first[kind].losses
            difference, error = float(gaps.mean()), math.nan
            if len(gaps) > 1:
                error = float(gaps.std(ddof=1)) / math.sqrt(len(gaps))
        rows.append(
            {
                "run": case.run,
                "split": case.split,
                "predictor": kind,
                "members": int(part.arrays["members"][i]),
                "error_%": scores.error,
                "NLL": scores.nll,
                "NLL_-_first_run's": difference,
                "+-": error,
                "Brier": scores.brier,
                "ECE": scores.ece,
            }
        )
    return rows
