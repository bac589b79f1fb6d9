"""Draws the figure of `lsam learning-coefficient`: what every chain adds to the estimate of each state."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lsam_hpc.landscape.chains.learning_coefficient import LearningCoefficient
from lsam_hpc.landscape.figures.figures import CENTER, COLOURS, figure, save

MAX_CHAINS = 16  # number of chains drawn


def draw_learning_coefficients(estimates: Mapping[str, LearningCoefficient], path: Path, title: str = "") -> Path:
    """Draw n beta (L_n(w) - L_n(w*)) along the chains of each state, whose mean is the estimate; return the path.

    Args:
        estimates: by the name of the state.
        path: of the figure, .png or .svg.
        title: of the figure.
    """
    with figure(7.0, 0.6 + 2.6 * len(estimates), rows=len(estimates)) as (drawing, axes):
        axes = np.atleast_1d(axes).reshape(-1)
        for axis, (name, estimate) in zip(axes, estimates.items(), strict=True):
            for i, losses in enumerate(estimate.losses[:MAX_CHAINS]):
                excess = estimate.inverse_temperature * (losses - estimate.loss)
                axis.plot(excess, color=COLOURS[i % len(COLOURS)], linewidth=0.6)
            axis.axhline(estimate.value, color=CENTER, linewidth=1.0)
            good = all(check.good for check in estimate.checks())
            axis.set(
                title=f"{name}: {estimate.value:.4g} ± {estimate.error:.2g}, P / 2 = {estimate.size / 2:g}, "
                f"R-hat {estimate.mixing.rhat:.3f}{'' if good else ', not converged or biased'}",
                ylabel="n β (L(w) - L(w*))",
            )
        axes[-1].set_xlabel("draw of a chain, after the warm-up")
        drawing.suptitle(title)
        return save(drawing, path)
