"""Draws the figure of `lsam basins`: minima and saddles on surfaces, and the merge tree of each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.landscape.figures.draw_surface import bar, contours, distances, levels
from lsam_hpc.landscape.figures.figures import CENTER, COLOURS, figure, heading, save
from lsam_hpc.landscape.figures.scales import LOG, log_axis
from lsam_hpc.landscape.formats.loss_landscape import Surface
from lsam_hpc.landscape.geometry.persistence import Basin

MOST_DRAWN = 12  # number of basins drawn, those of the largest persistence
UNKNOWN = ("first direction", "second direction")  # labels of the axes of another program's surface
_MINIMUM, _SADDLE = "#ffffff", COLOURS[4]


class Flooded(NamedTuple):
    """A surface and the basins of its losses, by the loss's name."""

    surface: Surface
    found: Mapping[str, Sequence[Basin]]
    labels: Sequence[str] = ()  # of the axes; none: not known


def draw_basins(flooded: Flooded, path: Path, title: str = "") -> Path:
    """Draw each of a surface's losses with its minima and saddles, and its merge tree beside it; return the path.

    Args:
        flooded: a surface on a plane with its basins.
        path: of the figure, see `figures.save`.
        title: of the figure.
    """
    names = list(flooded.found)
    at, logarithmic = levels([flooded.surface.values[name] for name in names])
    size = 9.0, 0.9 + 3.8 * len(names)
    with figure(*size, rows=len(names), cols=2, layout="compressed") as (drawing, axes):
        for (left, right), name in zip(axes, names, strict=True):
            bar(_plane(left, flooded, name, at, logarithmic=logarithmic), left, "loss", at, logarithmic=logarithmic)
            left.set_title("minima (circles), saddles (crosses)")
            right.sharey(axes[0, 1])
            right.set_box_aspect(1)
            right.set_title(f"merge tree{_tree(right, flooded.found[name])}")
            right.set_ylabel(name)
            if logarithmic:
                log_axis(right.yaxis)
        heading(drawing, title)
        return save(drawing, path)


def draw_basins_of(cases: Mapping[str, Flooded], path: Path, title: str = "") -> Path:
    """Draw the basins of several surfaces, a column for each, with common levels and one scale of all merge trees.

    Args:
        cases: a surface on a plane with its basins, by label.
        path: of the figure, see `figures.save`.
        title: of the figure.
    """
    names = list(dict.fromkeys(name for each in cases.values() for name in each.found))
    at, logarithmic = levels([each.surface.values[name] for each in cases.values() for name in each.found])
    size = 1.6 + 3.1 * len(cases), 0.9 + 5.6 * len(names)
    with figure(*size, rows=2 * len(names), cols=len(cases), layout="compressed") as (drawing, grid):
        grid = np.reshape(grid, (2 * len(names), len(cases)))
        for (i, name), (j, (label, each)) in itertools.product(enumerate(names), enumerate(cases.items())):
            above, below = grid[2 * i : 2 * i + 2, j]
            if name not in each.found:
                above.set_axis_off()
                below.set_axis_off()
                continue
            drawn = _plane(above, each, name, at, logarithmic=logarithmic)
            if j == len(cases) - 1:
                bar(drawn, above, "loss", at, logarithmic=logarithmic)
            below.set_box_aspect(0.8)
            below.set_title(f"merge tree{_tree(below, each.found[name])}", fontsize=8)
            below.set_ylim(at[0], at[-1])
            if logarithmic:
                log_axis(below.yaxis)
            if j == 0:
                below.set_ylabel(f"{name}, {LOG}" if logarithmic else name)
            else:
                below.set_ylabel("")
                below.tick_params(labelleft=False)
            above.set_title(f"{label}, {name}" if len(names) > 1 else label, fontweight="bold")
        heading(drawing, title)
        return save(drawing, path)


def arrays_of(flooded: Flooded) -> dict[str, Any]:
    """Return what the figure needs as arrays: a row for each basin, its `values` being the loss's name."""
    surface, rows = flooded.surface, [(name, basin) for name, each in flooded.found.items() for basin in each]
    basins = [basin for _, basin in rows]
    return {
        "surface/x": surface.x,
        "surface/y": surface.y,
        **{f"surface/{name}": surface.values[name] for name in flooded.found},
        "values": [name for name, _ in rows],
        "minimum": np.array([basin.minimum for basin in basins]),
        "value": np.array([basin.value for basin in basins]),
        "saddle_at": np.array([basin.saddle or (-1, -1) for basin in basins]),
        "saddle": np.array([np.nan if basin.saddle is None else basin.level for basin in basins]),
        "into": np.array([0 if basin.into is None else basin.into + 1 for basin in basins]),
        "top": np.array([basin.top for basin in basins]),
        "border": np.array([int(basin.border) for basin in basins]),
    }


def flooded_of(arrays: Mapping[str, Any], labels: Sequence[str]) -> Flooded:
    """Return what `arrays_of` made arrays of."""
    found: dict[str, list[Basin]] = {}
    for i, name in enumerate(arrays["values"]):
        merges = bool(arrays["saddle_at"][i][0] >= 0)
        row, column = map(int, arrays["minimum"][i])
        across, along = map(int, arrays["saddle_at"][i])
        basin = Basin(
            minimum=(row, column),
            value=float(arrays["value"][i]),
            saddle=(across, along) if merges else None,
            level=float(arrays["saddle"][i]) if merges else math.inf,
            into=int(arrays["into"][i]) - 1 if arrays["into"][i] else None,
            top=float(arrays["top"][i]),
            border=bool(arrays["border"][i]),
        )
        found.setdefault(name, []).append(basin)
    values = {name: arrays[f"surface/{name}"] for name in found}
    return Flooded(Surface(arrays["surface/x"], arrays["surface/y"], values), found, labels)


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


def _plane(axis: Any, flooded: Flooded, name: str, at: NDArray[np.float64], *, logarithmic: bool) -> Any:  # noqa: ANN401 (matplotlib's objects)
    """Draw a loss with its minima and saddles; return the object that `bar` needs."""
    surface = flooded.surface
    assert surface.y is not None
    drawn = contours(axis, surface, name, at, logarithmic=logarithmic)
    _points(axis, surface, flooded.found[name][:MOST_DRAWN])
    axis.set(xlim=surface.x[[0, -1]], ylim=surface.y[[0, -1]])
    first, second = (label.replace(" (", "\n(") for label in flooded.labels or UNKNOWN)
    axis.set(xlabel=first, ylabel=second)
    if flooded.labels and distances(flooded.labels):
        axis.set_aspect("equal", adjustable="box")
    else:
        axis.set_box_aspect(1)
    return drawn


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


def _tree(axis: Any, every: Sequence[Basin]) -> str:  # noqa: ANN401 (matplotlib's objects)
    """Draw the merge tree of the deepest basins; return what its title adds if there are more."""
    basins = every[:MOST_DRAWN]
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
    return f", {len(basins)} of {len(every)} basins" if len(basins) < len(every) else ""
