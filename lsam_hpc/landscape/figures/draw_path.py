"""Figures of paths: loss and error along a path, and barrier heights between all pairs of states."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lsam_hpc.landscape.figures.figures import COLOURS, SURFACE, figure, save
from lsam_hpc.landscape.geometry.path import Matrix, Profile

MOST_NUMBERS = 16  # largest number of states for which heights are written into the cells


def draw_profiles(profiles: Mapping[str, Profile], path: Path, names: tuple[str, str], title: str = "") -> Path:
    """Draw loss and error along paths between the same two states.

    Args:
        profiles: values along each path, by the path's name.
        path: of the figure, .png or .svg.
        names: of the two states.
        title: of the figure.
    """
    errors = any(np.isfinite(profile.error).any() for profile in profiles.values())
    with figure(6.0, 5.0 if errors else 3.6, rows=2 if errors else 1) as (drawing, axes):
        axes = np.atleast_1d(axes).reshape(-1)
        for (name, profile), colour, style in zip(profiles.items(), COLOURS, ("-", "--", "-."), strict=False):
            label = f"{name}: barrier {profile.barrier:.3g}"
            axes[0].plot(profile.t, profile.loss, style, marker=".", markersize=3, color=colour, label=label)
            if errors:
                axes[1].plot(profile.t, profile.error, style, marker=".", markersize=3, color=colour)
        axes[0].set_ylabel("loss")
        if errors:
            axes[1].set_ylabel("error (%)")
        axes[-1].set_xlabel(f"position t from {names[0]} to {names[1]}")
        axes[0].legend()
        drawing.suptitle(title)
        return save(drawing, path)


def draw_matrix(matrix: Matrix, path: Path, title: str = "") -> Path:
    """Draw the barrier heights between all pairs of states, and the loss on the lines between them."""
    heights = matrix.barriers
    count = len(matrix.names)
    side = max(3.4, 0.45 * min(count, MOST_NUMBERS) + 1.2)
    with figure(side + 5.2, side, cols=2) as (drawing, axes):
        left, right = axes[0]
        left.grid(visible=False)
        finite = heights[np.isfinite(heights)]
        top = float(finite.max()) if len(finite) and finite.max() > 0 else 1.0
        left.set_facecolor("#cccccc")
        drawn = left.imshow(np.ma.masked_invalid(heights), cmap=SURFACE, vmin=0, vmax=top)
        left.set_xticks(range(count), matrix.names, rotation=45, ha="right")
        left.set_yticks(range(count), matrix.names)
        left.set_title("barrier height (loss)" if matrix.highest else "no barrier above rounding")
        if count <= MOST_NUMBERS:
            for (i, j), height in np.ndenumerate(heights):
                if i != j:
                    dark = np.isfinite(height) and height < 0.6 * top
                    left.text(
                        j, i, f"{height:.2g}", ha="center", va="center", fontsize=7, color="white" if dark else "black"
                    )
        if matrix.highest:
            drawing.colorbar(drawn, ax=left, shrink=0.8)
        center = "center" in matrix.names
        for i in range(count):
            for j in range(i):
                to_center = center and "center" in (matrix.names[i], matrix.names[j])
                right.plot(matrix.t, matrix.loss[j, i], color=COLOURS[1] if to_center else COLOURS[0], linewidth=0.9)
        if center:
            right.plot([], [], color=COLOURS[1], label="with the center")
            right.plot([], [], color=COLOURS[0], label="between ranks")
            right.legend()
        right.set_xlabel("position t on the line")
        right.set_ylabel("loss")
        right.set_title("straight lines")
        drawing.suptitle(title)
        return save(drawing, path)
