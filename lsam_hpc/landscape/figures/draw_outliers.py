"""Draws the figure of `lsam outliers`: the loss of every sample before and after, and the images of the outliers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.landscape.curvature.opposing_signals import Outliers
from lsam_hpc.landscape.figures.figures import CENTER, COLOURS, figure, heading, legend, save
from lsam_hpc.landscape.figures.scales import log_axis

_RISING, _FALLING = COLOURS[4], COLOURS[0]
_FLOOR = 1e-8  # smallest loss drawn: logarithmic axes have no 0
PANEL = 3.4  # width of a run's panel in inches


def draw_outliers(
    result: Outliers,
    path: Path,
    names: tuple[str, str],
    *,
    images: Sequence[np.ndarray[Any, Any]] | np.ndarray[Any, Any] = (),
    classes: Sequence[str] = (),
    title: str = "",
) -> Path:
    """Draw the losses of all samples, and below them the outliers' images, opposing ones above each other.

    Args:
        result: the outliers.
        path: of the figure, see `figures.save`.
        names: of the two states.
        images: of the rising and then the falling samples, each of shape (H, W) or (H, W, 3), in [0, 1]. Default: none.
        classes: of these samples.
        title: of the figure.
    """
    columns = _columns(result) if len(images) else [(None, None)]
    rows = 3 if len(images) else 1
    with figure(max(6.0, 1.1 * len(columns)), 4.0 + 1.5 * (rows - 1), rows=rows, cols=len(columns)) as (drawing, axes):
        axes = np.array(axes).reshape(rows, len(columns))
        grid = axes[0, 0].get_gridspec()
        grid.set_height_ratios([2.4] + [1.0] * (rows - 1))
        for axis in axes[0]:
            axis.remove()
        whole = drawing.add_subplot(grid[0, :])
        _scatter(whole, result, names, _limits([result]))
        whole.legend(loc="upper left", bbox_to_anchor=(1, 1))
        for column, places in enumerate(columns if len(images) else ()):
            for row, (place, colour) in enumerate(zip(places, (_RISING, _FALLING), strict=True), 1):
                axis = axes[row, column]
                axis.set_axis_off()
                if place is None:
                    continue
                index = int(np.r_[result.rising, result.falling][place])
                axis.imshow(images[place], cmap="gray", vmin=0, vmax=1)
                text = f"{index}, class {classes[place]}\n{result.before[index]:.2g} → {result.after[index]:.2g}"
                if row == 2 and column < len(result.pairs):
                    text = f"cosine {result.cosines[result.pairs[column]]:.2f}\n{text}"
                axis.set_title(text, fontsize=7, color=colour)
        heading(drawing, title)
        return save(drawing, path)


def draw_outliers_of(cases: Mapping[str, tuple[Outliers, tuple[str, str]]], path: Path, title: str = "") -> Path:
    """Draw the losses of all samples of several runs, a panel for each, on one scale.

    Args:
        cases: the outliers and the names of the two states, by label.
        path: of the figure, see `figures.save`.
        title: of the figure.
    """
    cols = min(4, len(cases))
    rows = -(-len(cases) // cols)
    limits = _limits([result for result, _ in cases.values()])
    with figure(0.8 + PANEL * cols, 1.2 + PANEL * rows, rows, cols, layout="compressed") as (drawing, grid):
        axes = np.ravel(grid)
        for k, (axis, (label, (result, names))) in enumerate(zip(axes, cases.items(), strict=False)):
            _scatter(axis, result, names, limits)
            axis.set_title(label, fontweight="bold")
            if k % cols:
                axis.tick_params(labelleft=False)
        for axis in axes[len(cases) :]:
            axis.set_axis_off()
        legend(drawing, axes[0].get_legend_handles_labels()[0])
        heading(drawing, title)
        return save(drawing, path)


def arrays_of(result: Outliers) -> dict[str, Any]:
    """Return the outliers as arrays."""
    names = ("before", "after", "rising", "falling", "norms", "cosines")
    pairs = np.array(result.pairs, np.int64).reshape(-1, 2)
    return {**{name: getattr(result, name) for name in names}, "pairs": pairs}


def outliers_of(arrays: Mapping[str, Any]) -> Outliers:
    """Return what `arrays_of` made arrays of."""
    names = ("before", "after", "rising", "falling", "norms", "cosines")
    pairs = [(int(i), int(j)) for i, j in arrays["pairs"]]
    return Outliers(**{name: arrays[name] for name in names}, pairs=pairs)


def _columns(result: Outliers) -> list[tuple[int | None, int | None]]:
    """Return what is drawn in each column: a rising sample and the falling one below it; the rest have none."""
    count = len(result.rising)
    pairs: list[tuple[int | None, int | None]] = [(i, count + j) for i, j in result.pairs]
    paired = {place for pair in pairs for place in pair}
    pairs += [(i, None) for i in range(count) if i not in paired]
    return pairs + [(None, count + j) for j in range(len(result.falling)) if count + j not in paired]


def _limits(results: Sequence[Outliers]) -> tuple[float, float]:
    """Return the smallest and the largest loss that is drawn."""
    losses = np.concatenate([each for result in results for each in (result.before, result.after)])
    low, high = float(np.maximum(losses, _FLOOR).min()), float(np.maximum(losses, _FLOOR).max())
    return low, high if high > 1.01 * low else 2 * low


def _scatter(axis: Any, result: Outliers, names: tuple[str, str], limits: tuple[float, float]) -> None:  # noqa: ANN401 (matplotlib's objects)
    before, after = (np.maximum(losses, _FLOOR) for losses in (result.before, result.after))
    axis.plot(before, after, ".", color="#999999", markersize=3, label="all samples")
    for indices, colour, label in ((result.rising, _RISING, "rise most"), (result.falling, _FALLING, "fall most")):
        axis.plot(before[indices], after[indices], "o", color=colour, markersize=5, label=label)
    axis.plot(limits, limits, color=CENTER, linewidth=0.6)
    axis.set(xlabel=f"loss of a sample at {names[0]}", ylabel=f"loss at {names[1]}")
    margin = (limits[1] / limits[0]) ** 0.04
    axis.set(xlim=(limits[0] / margin, limits[1] * margin), ylim=(limits[0] / margin, limits[1] * margin))
    for each in (axis.xaxis, axis.yaxis):
        log_axis(each)
    axis.set_aspect(1)
