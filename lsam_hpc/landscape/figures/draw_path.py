"""Figures of paths: loss and error along a path, and barrier heights between all pairs of states."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.landscape.figures.draw_surface import value_axis
from lsam_hpc.landscape.figures.figures import COLOURS, SURFACE, figure, heading, legend, save
from lsam_hpc.landscape.figures.scales import AUTOMATIC, Scale, number
from lsam_hpc.landscape.geometry.barriers import Matrix, Profile

MOST_NUMBERS = 10  # largest number of states for which heights are written into the cells
ALIKE = 1e-3  # range / magnitude of losses below which their difference from the lowest one is drawn


def draw_profiles(
    profiles: Mapping[str, Profile], path: Path, names: tuple[str, str], title: str = "", *, scale: Scale = AUTOMATIC
) -> Path:
    """Draw loss and error along paths between the same two states.

    Args:
        profiles: values along each path, by the path's name.
        path: of the figure, see `figures.save`.
        names: of the two states.
        title: of the figure.
        scale: of the loss. Default: linear.
    """
    errors = any(np.isfinite(profile.error).any() for profile in profiles.values())
    with figure(5.5, 4.8 if errors else 3.6, rows=2 if errors else 1) as (drawing, axes):
        axes = np.atleast_1d(axes).reshape(-1)
        for (name, profile), colour, style in zip(profiles.items(), COLOURS, ("o-", "s--", "^-."), strict=False):
            label = f"{name}: barrier {profile.barrier:.3g}"
            axes[0].plot(profile.t, profile.loss, style, markersize=3, color=colour, label=label)
            if errors:
                axes[1].plot(profile.t, profile.error, style, markersize=3, color=colour)
        axes[0].set_ylabel("loss")
        value_axis(axes[0], [profile.loss for profile in profiles.values()], scale)
        if errors:
            axes[1].set_ylabel("error (%)")
        axes[-1].set_xlabel(f"position t from {names[0]} (t = 0) to {names[1]} (t = 1)")
        for axis in axes:
            axis.margins(x=0.02)
        legend(drawing, axes[0].get_legend_handles_labels()[0])
        heading(drawing, title)
        return save(drawing, path)


def draw_matrix(matrix: Matrix, path: Path, title: str = "", *, scale: Scale = AUTOMATIC) -> Path:
    """Draw the barrier heights between all pairs of states, and the loss on the lines between them.

    Args:
        matrix: losses on the lines.
        path: of the figure, see `figures.save`.
        title: of the figure.
        scale: of the loss on the lines. Default: linear.
    """
    from matplotlib.ticker import FuncFormatter

    count = len(matrix.names)
    with figure(7.2, 3.8, cols=2, layout="compressed") as (drawing, axes):
        left, right = axes[0]
        _heights(left, matrix)
        center = "center" in matrix.names
        lines: dict[str, Any] = {}
        low, label = _offset(matrix.loss, scale)
        for i in range(count):
            for j in range(i):
                to_center = center and "center" in (matrix.names[i], matrix.names[j])
                colour, style = (COLOURS[1], "--") if to_center else (COLOURS[0], "-")
                name = (
                    "between the center and a rank"
                    if to_center
                    else "between two states"
                    if not center
                    else ("between two ranks")
                )
                (line,) = right.plot(matrix.t, matrix.loss[j, i] - low, style, color=colour, linewidth=1, label=name)
                lines.setdefault(name, line)
        right.set(xlabel="position t on the line", ylabel=label, title="loss on the straight lines")
        right.set_box_aspect(1)
        right.margins(x=0.02)
        if low:
            right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        value_axis(right, [matrix.loss - low], scale)
        legend(drawing, list(lines.values()))
        heading(drawing, title)
        return save(drawing, path)


def _heights(ax: Any, matrix: Matrix) -> None:  # noqa: ANN401 (matplotlib's objects)
    """Draw the heights as a matrix of colours, with numbers if there are few; the diagonal and NaN are grey."""
    heights = matrix.barriers
    np.fill_diagonal(heights, np.nan)
    count = len(heights)
    finite = heights[np.isfinite(heights)]
    top = float(finite.max()) if len(finite) and finite.max() > 0 else 1.0
    ax.grid(visible=False)
    ax.set_facecolor("#dddddd")
    drawn = ax.imshow(np.ma.masked_invalid(heights), cmap=SURFACE, vmin=0, vmax=top)
    every = -(-count // 20)
    named = range(0, count, every)
    turned = max(map(len, matrix.names)) * count > 40
    ax.set_xticks(named, matrix.names[::every], rotation=90 if turned else 0)
    ax.set_yticks(named, matrix.names[::every])
    ax.set_title("barrier height (loss)" if matrix.highest else "no barrier above rounding")
    if count <= MOST_NUMBERS:
        for (i, j), height in np.ndenumerate(heights):
            if np.isfinite(height):
                colour = "white" if height < 0.6 * top else "black"
                size = 8 if count <= 6 else 6
                ax.text(j, i, number(float(f"{height:.2g}")), ha="center", va="center", fontsize=size, color=colour)
    if matrix.highest:
        from matplotlib.ticker import FuncFormatter

        made = ax.figure.colorbar(drawn, cax=ax.inset_axes([1.04, 0, 0.05, 1]))
        made.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def _offset(loss: NDArray[np.float64], scale: Scale) -> tuple[float, str]:
    """Return what is subtracted from losses that are almost equal, 0 for others, and the label of the axis."""
    known = loss[np.isfinite(loss)]
    if not len(known) or scale != AUTOMATIC:
        return 0.0, "loss"
    low, high = float(known.min()), float(known.max())
    if high - low >= ALIKE * max(abs(low), abs(high)):
        return 0.0, "loss"
    return low, f"loss - {low:.6g}"
