"""Draws reliability diagrams: accuracy as a function of confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lsam_hpc.landscape.figures.figures import CENTER, COLOURS, figure, heading, legend, save
from lsam_hpc.landscape.figures.scales import log_axis
from lsam_hpc.landscape.prediction.calibration import BINS, EDGES, Reliability, Scores

MOST_TOLD = 4  # largest number of runs whose scores each panel's legend has


class Predicted(NamedTuple):
    """The predictors of a run, with its label and the style of its lines."""

    label: str
    style: Mapping[str, Any]
    predictors: Mapping[str, Scores]


def draw_reliability(panels: Mapping[str, Scores], path: Path, title: str = "") -> Path:
    """Draw a reliability diagram of each predictor, with the number of predictions in each bin beneath.

    Args:
        panels: name of the predictor -> its scores.
        path: of the figure, see `figures.save`.
        title: of the figure.
    """
    with figure(2.9 * len(panels) + 0.4, 4.4) as (drawing, whole):
        axes = _grid(drawing, whole, len(panels))
        for (above, below), (name, scores) in zip(axes.T, panels.items(), strict=True):
            bins = scores.reliability
            filled = bins.counts > 0
            above.vlines(
                bins.confidence[filled],
                bins.confidence[filled],
                bins.accuracy[filled],
                color=COLOURS[4],
                linewidth=2,
                label="gap",
            )
            _curve(above, bins, color=COLOURS[0])
            above.set_title(f"{name}\n{_told(scores)}")
            below.bar(EDGES[:-1], bins.counts, 1 / BINS, align="edge", color=COLOURS[0], edgecolor="white")
        _finish(axes)
        axes[0, 0].legend(loc="upper left", fontsize=8)
        heading(drawing, title)
        return save(drawing, path)


def draw_reliability_of(cases: Sequence[Predicted], path: Path, title: str = "") -> Path:
    """Draw the reliability diagrams of several runs over each other, a panel for each kind of predictor.

    Args:
        cases: the runs.
        path: of the figure, see `figures.save`.
        title: of the figure.
    """
    kinds = list(dict.fromkeys(name for case in cases for name in case.predictors))
    with figure(3.2 * len(kinds) + 0.4, 5.0) as (drawing, whole):
        axes = _grid(drawing, whole, len(kinds))
        for (above, below), kind in zip(axes.T, kinds, strict=True):
            lines = []
            for _, style, predictors in cases:
                if kind not in predictors:
                    continue
                bins = predictors[kind].reliability
                (line,) = _curve(above, bins, **style)
                line.set_label(_told(predictors[kind]))
                lines.append(line)
                share = bins.counts / bins.counts.sum()
                below.step(EDGES, np.r_[share, share[-1]], where="post", linewidth=1.2, **style)
            above.set_title(kind)
            if len(cases) <= MOST_TOLD:
                above.legend(handles=lines, loc="best", fontsize=6.5)
        _finish(axes, counted="share of predictions")
        drawn = [line for line in axes[0, 0].lines if line.get_label() == "calibrated"]
        for label, style, _ in cases:
            drawn += axes[0, 0].plot([], [], marker="o", markersize=3.5, label=label, **style)
        legend(drawing, drawn)
        heading(drawing, title)
        return save(drawing, path)


def arrays_of(panels: Mapping[str, Scores]) -> dict[str, Any]:
    """Return the scores of predictors as arrays, a row for each."""
    scores = list(panels.values())
    return {
        "panels": list(panels),
        "error": np.array([each.error for each in scores]),
        "losses": np.array([each.losses for each in scores]),
        "brier": np.array([each.brier for each in scores]),
        "ece": np.array([each.ece for each in scores]),
        **{name: np.array([getattr(each.reliability, name) for each in scores]) for name in _SUMS},
    }


def panels_of(arrays: Mapping[str, Any]) -> dict[str, Scores]:
    """Return what `arrays_of` made arrays of."""
    panels = {}
    for i, name in enumerate(arrays["panels"]):
        error, brier, ece = (float(arrays[column][i]) for column in ("error", "brier", "ece"))
        panels[name] = Scores(error, arrays["losses"][i], brier, ece, Reliability(*(arrays[s][i] for s in _SUMS)))
    return panels


_SUMS = ("counts", "confidences", "hits")  # of `Reliability`


def _told(scores: Scores) -> str:
    return f"ECE {scores.ece:.4f}, NLL {scores.nll:.4g}"


def _grid(drawing: Any, whole: Any, cols: int) -> Any:  # noqa: ANN401 (matplotlib's objects)
    """Return axes for diagrams, above, and for the numbers of predictions in each bin, below."""
    whole.remove()
    ratios = {"height_ratios": [3, 1]}
    return drawing.subplots(2, cols, squeeze=False, sharex=True, sharey="row", gridspec_kw=ratios)


def _curve(axis: Any, bins: Reliability, **style: Any) -> Any:  # noqa: ANN401 (matplotlib's objects)
    filled = bins.counts > 0
    look = {"marker": "o", "markersize": 3.5, "clip_on": False, **style}
    return axis.plot(bins.confidence[filled], bins.accuracy[filled], **look)


def _finish(axes: Any, counted: str = "predictions") -> None:  # noqa: ANN401 (matplotlib's objects)
    for above, below in axes.T:
        above.plot([0, 1], [0, 1], "--", linewidth=0.8, color=CENTER, label="calibrated", zorder=1)
        above.set(xlim=(0, 1), ylim=(0, 1))
        above.set_box_aspect(1)
        below.set_box_aspect(1 / 3)
        below.set(xlabel="confidence", xticks=np.linspace(0, 1, 6), ylabel=counted)
        if counted == "predictions":
            below.set_ylim(0.5, None)
        log_axis(below.yaxis)
    axes[0, 0].set_ylabel("accuracy")
    for below in axes[1, 1:]:
        below.set_ylabel("")
