"""Draws the figure of `lsam learning-coefficient`: what every chain adds to the estimate of each state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.landscape.figures.figures import CENTER, COLOURS, figure, heading, save

MAX_CHAINS = 16  # number of chains drawn
QUANTITY = "n β (L(w) - L(w*))"
_COLUMNS = {  # of the table of a file
    "value": "lambda",
    "error": "standard_error",
    "half": "half_parameters",
    "rhat": "rhat",
    "ess_bulk": "ess_bulk",
    "ess_tail": "ess_tail",
}


class Estimated(NamedTuple):
    """An estimate, and the chains whose mean it is."""

    excess: NDArray[np.float64]  # n beta (L_n(w) - L_n(w*)) at each draw, shape (chains, draws)
    value: float
    error: float  # standard error
    half: float  # half the number of parameters
    rhat: float  # the larger one of the loss and of the distance from the state
    ess_bulk: float  # of the loss
    ess_tail: float
    problems: Sequence[str] = ()  # names of the checks that failed

    @property
    def mixing(self) -> str:
        """R-hat and effective sample sizes in words."""
        return (
            f"R-hat {self.rhat:.3f}, ESS bulk {self.ess_bulk:.0f}, tail {self.ess_tail:.0f} of {self.excess.size} draws"
        )

    @property
    def judged(self) -> str:
        """What is wrong in words; empty if nothing is."""
        return f"not good: {', '.join(self.problems)}" if self.problems else ""


def draw_learning_coefficients(estimates: Mapping[str, Estimated], path: Path, title: str = "") -> Path:
    """Draw n beta (L_n(w) - L_n(w*)) along the chains of each state, whose mean is the estimate; return the path.

    Args:
        estimates: by the name of the state.
        path: of the figure, see `figures.save`.
        title: of the figure.
    """
    with figure(7.0, 0.8 + 2.8 * len(estimates), rows=len(estimates)) as (drawing, axes):
        for axis, (name, estimate) in zip(np.ravel(axes), estimates.items(), strict=True):
            _trace(axis, estimate)
            first = f"{name}: {estimate.value:.4g} ± {estimate.error:.2g}, P / 2 = {estimate.half:g}"
            second = "; ".join(part for part in (estimate.mixing, estimate.judged) if part)
            axis.set_title(f"{first}\n{second}", fontsize=9)
            axis.set_ylabel(QUANTITY)
        np.ravel(axes)[-1].set_xlabel("draw of a chain, after the warm-up")
        heading(drawing, title)
        return save(drawing, path)


def draw_learning_coefficients_of(cases: Mapping[str, Mapping[str, Estimated]], path: Path, title: str = "") -> Path:
    """Draw the estimates of several runs beside each other, and the chains of each, a row for each state on one scale.

    Args:
        cases: estimates by the name of the state, by label of the run.
        path: of the figure, see `figures.save`.
        title: of the figure.
    """
    states = list(dict.fromkeys(name for of_run in cases.values() for name in of_run))
    size = 3.0 + 2.7 * len(cases), 1.0 + 2.7 * len(states)
    with figure(*size, rows=len(states), cols=1 + len(cases)) as (drawing, grid):
        grid = np.reshape(grid, (len(states), 1 + len(cases)))
        for (first, *others), state in zip(grid, states, strict=True):
            excess = [of_run[state].excess[:MAX_CHAINS] for of_run in cases.values()]
            low, high = min(each.min() for each in excess), max(each.max() for each in excess)
            margin = 0.05 * ((high - low) or 1.0)
            for i, ((label, of_run), axis) in enumerate(zip(cases.items(), others, strict=True)):
                estimate = of_run[state]
                look: dict[str, Any] = {"fmt": "o", "capsize": 4, "markersize": 4, "color": CENTER}
                first.errorbar([i], [estimate.value], [2 * estimate.error], **look)
                _trace(axis, estimate)
                words = estimate.mixing.replace(", ESS", "\nESS").replace(" draws", "")
                text = "\n".join(part for part in (label, words, estimate.judged) if part)
                axis.set_title(text, fontsize=8)
                axis.tick_params(labelleft=i == 0)
                axis.set_ylim(low - margin, high + margin)
            first.set_title(f"{state}: λ ± 2 standard errors", fontsize=8)
            first.set_xticks(range(len(cases)), list(cases), rotation=20, ha="right")
            first.margins(x=0.3)
            first.set_ylabel("λ")
            others[0].set_ylabel(QUANTITY)
        for axis in grid[-1, 1:]:
            axis.set_xlabel("draw, after the warm-up")
        heading(drawing, title)
        return save(drawing, path)


def estimates_of(arrays: Mapping[str, Any], notes: Mapping[str, Any]) -> dict[str, Estimated]:
    """Return the estimates by the name of the state, from the arrays and notes of a file."""
    estimates = {}
    for i, name in enumerate(arrays["state"]):
        excess = notes["inverse_temperature"] * (arrays[f"losses/{part(name)}"] - arrays["loss"][i])
        numbers = {field: float(arrays[column][i]) for field, column in _COLUMNS.items()}
        estimates[name] = Estimated(excess, **numbers, problems=notes["problems"][name])
    return estimates


def part(name: str) -> str:
    """Return a state's name for use in that of an array."""
    return name.replace("/", "-")


def _trace(axis: Any, estimate: Estimated) -> None:  # noqa: ANN401 (matplotlib's objects)
    for i, excess in enumerate(estimate.excess[:MAX_CHAINS]):
        axis.plot(excess, color=COLOURS[i % len(COLOURS)], linewidth=0.6)
    axis.axhline(estimate.value, color=CENTER, linewidth=1.0)
