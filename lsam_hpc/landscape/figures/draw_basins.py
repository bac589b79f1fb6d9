"""Draws the figure of `lsam basins`: minima and saddles on surfaces, and the merge tree of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.landscape.figures.draw_surface import bar, contours, levels
from lsam_hpc.landscape.figures.figures import CENTER, COLOURS, figure, save
from lsam_hpc.landscape.figures.scales import log_axis
from lsam_hpc.landscape.formats.loss_landscape import Surface
from lsam_hpc.landscape.geometry.persistence import Basin

MOST_DRAWN = 12  # number of basins drawn, those of the largest persistence
_MINIMUM, _SADDLE = "#ffffff", COLOURS[4]


def draw_basins(surface: Surface, found: Mapping[str, Sequence[Basin]], path: Path, title: str = "") -> Path:
    """Draw each of a surface's losses with its minima and saddles, and its merge tree beside it; return the path.

    Args:
        surface: values on a plane.
        found: the basins of each of the losses, by name.
        path: of the figure, .png or .svg.
        title: of the figure.
    """
    at, logarithmic = levels([surface.values[name] for name in found])
    with figure(9.0, 0.6 + 3.8 * len(found), rows=len(found), cols=2) as (drawing, axes):
        for (left, right), (name, all_basins) in zip(axes, found.items(), strict=True):
            drawn = all_basins[:MOST_DRAWN]
            bar(contours(left, surface, name, at, logarithmic=logarithmic), [left], "loss", at, logarithmic=logarithmic)
            _points(left, surface, drawn)
            left.set(title="minima (circles), saddles (crosses)", xlabel="first direction", ylabel="second direction")
            _tree(right, drawn)
            more = f", {len(drawn)} of {len(all_basins)} basins" if len(drawn) < len(all_basins) else ""
            right.set(title=f"merge tree{more}", ylabel=name)
            right.sharey(axes[0, 1])
            if logarithmic:
                log_axis(right.yaxis)
        drawing.suptitle(title)
        return save(drawing, path)


def order(basins: Sequence[Basin]) -> list[int]:
    """Return the basins from left to right so that no lines of their merge tree cross.

    To the right of a basin are those that merge into it, from the lowest saddle to the highest, each with its own.
    """
    children: dict[int | None, list[int]] = {}
    for i, basin in enumerate(basins):
        children.setdefault(basin.into, []).append(i)
    placed: list[int] = []
    stack = children.get(None, [])[::-1]
    while stack:
        placed.append(at := stack.pop())
        stack += sorted(children.get(at, []), key=lambda i: basins[i].level, reverse=True)
    return placed


def _points(axis: Any, surface: Surface, basins: Sequence[Basin]) -> None:  # noqa: ANN401 (matplotlib's objects)
    from matplotlib.patheffects import withStroke

    assert surface.y is not None
    for number, basin in enumerate(basins, 1):
        for point, marker, colour in ((basin.minimum, "o", _MINIMUM), (basin.saddle, "X", _SADDLE)):
            if point is None:
                continue
            place = (surface.x[point[1]], surface.y[point[0]])
            axis.plot(*place, marker, color=colour, markeredgecolor=CENTER, markersize=7, clip_on=False, zorder=3)
            axis.annotate(
                str(number),
                place,
                xytext=(5, 4 if point[0] < len(surface.y) / 2 else -11),  # inside the axes
                textcoords="offset points",
                color=colour,
                fontsize=8,
                zorder=4,
                path_effects=[withStroke(linewidth=1.5, foreground=CENTER)],
            )


def _tree(axis: Any, basins: Sequence[Basin]) -> None:  # noqa: ANN401 (matplotlib's objects)
    places = {i: place for place, i in enumerate(order(basins))}
    for i, basin in enumerate(basins):
        x, top = places[i], basin.top if basin.into is None else basin.level
        axis.plot([x, x], [basin.value, top], color=COLOURS[0])
        axis.plot(x, basin.value, "o", color=_MINIMUM, markeredgecolor=CENTER)
        if basin.into is not None:
            axis.plot([places[basin.into], x], [top, top], color=COLOURS[0])
            axis.plot(x, top, "X", color=_SADDLE, markeredgecolor=CENTER)
    axis.set_xticks(np.arange(len(basins)), [str(i + 1) for i in order(basins)])
    axis.set_xlabel("basin")
    axis.set_xlim(-0.5, len(basins) - 0.5)
