"""Predictions of several runs: their reliability diagrams over each other, and their scores in a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lsam_hpc.landscape.compare.comparison import Case, Comparison, named, of_rows
from lsam_hpc.landscape.compare.parts import Part, pack, read_parts
from lsam_hpc.landscape.figures.draw_reliability import Predicted, draw_reliability_of, panels_of
from lsam_hpc.landscape.prediction.calibration import Scores

KIND = "compare-predict"


def compare_predictions(cases: Sequence[Case], title: str) -> Comparison:
    """Return the comparison of predictors, from the .h5 files: a row for each predictor of each case."""
    parts = read_parts(cases)
    rows = [row for part in parts for row in _rows(part, parts)]
    names = ("panels", "predictor", "error", "losses", "brier", "ece", "counts", "confidences", "hits")
    return Comparison(*of_rows(rows), partial(draw_parts, parts, title), pack(KIND, title, parts, names))


def draw_parts(parts: Sequence[Part], title: str, path: Path) -> Path:
    """Draw the comparison."""
    labels = named([part.case for part in parts])
    cases = [Predicted(label, p.case.style, _predictors(p)) for label, p in zip(labels, parts, strict=True)]
    return draw_reliability_of(cases, path, title)


def _predictors(part: Part) -> dict[str, Scores]:
    """Return the scores by the kind of the predictor, which has no numbers of ranks."""
    kinds = [name.partition(",")[0] for name in part.arrays["predictor"]]
    return dict(zip(kinds, panels_of(part.arrays).values(), strict=True))


def _rows(part: Part, parts: Sequence[Part]) -> list[dict[str, Any]]:
    first = next(other for other in parts if other.case.split == part.case.split)
    same = first is not part and first.notes["data"] == part.notes["data"]
    of_first = _predictors(first) if same else {}
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
                "run": part.case.run,
                "split": part.case.split,
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
