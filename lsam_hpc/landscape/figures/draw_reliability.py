"""Draws reliability diagrams: accuracy as a function of confidence."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lsam_hpc.landscape.figures.figures import CENTER, COLOURS, figure, save
from lsam_hpc.landscape.figures.scales import log_axis
from lsam_hpc.landscape.prediction.calibration import BINS, EDGES, Scores


def draw_reliability(panels: Mapping[str, Scores], path: Path, title: str = "") -> Path:
    """Draw a reliability diagram of each predictor, with the number of predictions in each bin beneath.

    Args:
        panels: name of the predictor -> its scores.
        path: of the figure.
        title: of the figure.
    """
    with figure(2.9 * len(panels) + 0.4, 4.4) as (drawing, whole):
        whole.remove()
        axes = drawing.subplots(
            2, len(panels), squeeze=False, sharex=True, sharey="row", gridspec_kw={"height_ratios": [3, 1]}
        )
        for (above, below), (name, scores) in zip(axes.T, panels.items(), strict=True):
            bins = scores.reliability
            filled = bins.counts > 0
            above.plot([0, 1], [0, 1], "--", linewidth=0.8, color=CENTER, label="calibrated")
            above.vlines(
                bins.confidence[filled],
                bins.confidence[filled],
                bins.accuracy[filled],
                color=COLOURS[4],
                linewidth=2,
                label="gap",
            )
            above.plot(
                bins.confidence[filled], bins.accuracy[filled], "o-", color=COLOURS[0], markersize=3.5, clip_on=False
            )
            above.set(title=f"{name}\nECE {scores.ece:.4f}, NLL {scores.nll:.4g}", xlim=(0, 1), ylim=(0, 1))
            above.set_box_aspect(1)
            below.set_box_aspect(1 / 3)
            below.bar(EDGES[:-1], bins.counts, 1 / BINS, align="edge", color=COLOURS[0], edgecolor="white")
            below.set(xlabel="confidence", ylim=(0.5, None), xticks=np.linspace(0, 1, 6), ylabel="predictions")
            log_axis(below.yaxis)
        axes[0, 0].set_ylabel("accuracy")
        for below in axes[1, 1:]:
            below.set_ylabel("")
        axes[0, 0].legend(loc="upper left", fontsize=8)
        drawing.suptitle(title)
        return save(drawing, path)
