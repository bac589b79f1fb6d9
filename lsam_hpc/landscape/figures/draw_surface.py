"""Figures of surfaces: losses side by side with a common colour scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.figures.figures import COLOURS, SURFACE, figure, heading, legend, save
from lsam_hpc.landscape.figures.scales import AUTOMATIC, LOG, Scale, levels, log_axis, log_places, number
from lsam_hpc.landscape.formats.loss_landscape import Surface
from lsam_hpc.landscape.geometry import columns as c

__all__ = ["bar", "contours", "draw_surface", "levels"]
TITLES = {
    c.LOSS: "loss f",
    c.SAM: "SAM loss f(x + e)",
    c.REGULARISED: "f + rho |grad f|",
    c.SMOOTHED: "smoothed loss F",
    c.ERROR: "error (%)",
}
LOSSES = c.LOSSES
_MARKS = "o^sDvP*X"
_PANEL = 2.6  # width of a panel in inches
_UNKNOWN = "#cccccc"  # colour of points without a value


def draw_surface(
    surface: Surface,
    path: Path,
    labels: Sequence[str],
    marks: Mapping[str, NDArray[np.float64]] | None = None,
    title: str = "",
    *,
    scale: Scale = AUTOMATIC,
) -> Path:
    """Draw a surface that `surface.scan` returned; points without a value are grey.

    Args:
        surface: values on a line or a plane.
        path: of the figure, see `figures.save`.
        labels: of the axes.
        marks: coordinates of states, by name; one outside the surface is not drawn.
        title: of the figure.
        scale: of the losses. Default: as suits them.
    """
    return (_line if surface.y is None else _plane)(surface, path, labels, marks or {}, title=title, scale=scale)


def contours(
    axis: Any,  # noqa: ANN401 (matplotlib's objects)
    surface: Surface,
    name: str,
    at: NDArray[np.float64],
    *,
    logarithmic: bool,
    pale: float = 0.0,
    free: NDArray[np.float64] | None = None,
) -> Any:  # noqa: ANN401
    """Draw filled contours of a surface's values at given levels, with labels; return the object that `bar` needs.

    Args:
        axis: of matplotlib.
        surface: values on a plane.
        name: of the values.
        at: levels, ascending; values outside get the colour of the next level.
        logarithmic: whether the colours are.
        pale: share of white in the colours, for figures with lines on top. Default: 0.
        free: places near which no label is written, shape (n, 2). Default: none.
    """
    from matplotlib.colors import LogNorm, Normalize

    norm = (LogNorm if logarithmic else Normalize)(at[0], at[-1])
    values = np.maximum(surface.values[name], at[0] / 2) if logarithmic else surface.values[name]
    shown = np.ma.masked_invalid(values)
    below, above = bool((shown < at[0]).any()), bool((shown > at[-1]).any())
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max"}.get((below, above), "both")
    axis.set_facecolor(_UNKNOWN)
    axis.grid(visible=False)
    colours = _paler(pale)
    drawn = axis.contourf(surface.x, surface.y, shown, levels=at, norm=norm, cmap=colours, extend=extend)
    low, high = float(shown.min()) if shown.count() else 0.0, float(shown.max()) if shown.count() else 0.0
    inner = at[(at > low) & (at < high)]
    if len(inner):
        dark = [("white" if sum(colours(norm(level))[:3]) < 1.5 else "black") for level in inner]
        lines = axis.contour(surface.x, surface.y, shown, levels=inner, colors=dark, linewidths=0.5)
        every = -(-len(inner) // 5)
        bounds = np.stack([surface.x[[0, -1]], surface.y[[0, -1]]])  # type: ignore[index]
        sides = np.ptp(bounds, axis=1)
        for text in axis.clabel(lines, inner[::every], fmt=number, fontsize=7):
            at_edge = (np.abs(bounds.T - text.get_position()) < 0.03 * sides).any()  # half of it would be outside
            covered = free is not None and (np.abs(free - text.get_position()) < 0.06 * sides).all(1).any()
            text.set_visible(not at_edge and not covered)
    return drawn


def bar(drawn: Any, axes: Any, label: str, at: NDArray[np.float64], *, logarithmic: bool) -> None:  # noqa: ANN401 (matplotlib's objects)
    """Add a colour bar beside the last of some axes, as high as these, with at most seven ticks."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    beside = axes[-1] if isinstance(axes, (list, tuple)) else axes
    place = beside.inset_axes([1.04, 0, 0.05, 1])
    made = beside.figure.colorbar(drawn, cax=place, label=f"{label}, {LOG}" if logarithmic else label)
    ticks = log_places(at[0], at[-1]) if logarithmic else at[:: -(-len(at) // 7)]
    made.ax.yaxis.set_major_locator(FixedLocator(list(ticks)))
    made.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    made.ax.yaxis.set_minor_locator(NullLocator())


def distances(labels: Iterable[str]) -> bool:
    """Return whether all axes with these labels have the same unit: distances, or norms of each filter."""
    units = {label.partition("(")[2].partition(";")[0].rstrip(")") for label in labels}
    return len(units) == 1


def _paler(share: float) -> Any:  # noqa: ANN401 (matplotlib's objects)
    import matplotlib as mpl
    from matplotlib.colors import ListedColormap

    colours = np.array(mpl.colormaps[SURFACE].colors)  # type: ignore[attr-defined]
    return ListedColormap(colours + share * (1 - colours), f"{SURFACE} {share:g}")


def _plane(
    surface: Surface,
    path: Path,
    labels: Sequence[str],
    marks: Mapping[str, NDArray[np.float64]],
    *,
    title: str,
    scale: Scale,
) -> Path:
    assert surface.y is not None
    losses = [name for name in LOSSES if name in surface.values]
    errors = [c.ERROR] if np.isfinite(surface.values.get(c.ERROR, np.full(1, np.nan))).any() else []
    names = losses + errors
    at, logarithmic = levels([surface.values[name] for name in losses], scale=scale)
    cols = 2 if len(names) in (2, 4) else len(names)
    rows = len(names) // cols
    equal = distances(labels)
    tall = _PANEL * min(max(np.ptp(surface.y) / np.ptp(surface.x), 0.4), 2.0) if equal else _PANEL
    size = 1.0 + (_PANEL + 0.8) * cols, 1.1 + (tall + 0.8) * rows
    with figure(*size, rows, cols, layout="compressed") as (drawing, grid):
        axes = np.atleast_1d(grid).reshape(-1)
        for i, (axis, name) in enumerate(zip(axes, names, strict=True)):
            levels_here = (at, logarithmic) if name in losses else levels([surface.values[name]])
            drawn = contours(axis, surface, name, levels_here[0], logarithmic=levels_here[1])
            if name in errors:
                bar(drawn, axis, TITLES[name], at=levels_here[0], logarithmic=levels_here[1])
            elif i % cols == cols - 1 or name == losses[-1]:
                bar(drawn, axis, "loss", at, logarithmic=logarithmic)
            handles = _mark(axis, marks, surface)
            axis.set_title(TITLES[name])
            axis.set(xlim=surface.x[[0, -1]], ylim=surface.y[[0, -1]])
            if equal:
                axis.set_aspect("equal", adjustable="box")
            else:
                axis.set_box_aspect(1)
            if i >= len(names) - cols:
                axis.set_xlabel(_two_lines(labels[0]))
            if i % cols == 0:
                axis.set_ylabel(_two_lines(labels[1]))
        legend(drawing, handles)
        heading(drawing, title)
        return save(drawing, path)


def _mark(axis: Any, marks: Mapping[str, NDArray[np.float64]], surface: Surface) -> list[Any]:  # noqa: ANN401 (matplotlib's objects)
    """Mark the states that lie on the surface; one that hides another is smaller."""
    assert surface.y is not None
    handles = []
    for i, (name, place) in enumerate(marks.items()):
        if surface.x[0] <= place[0] <= surface.x[-1] and surface.y[0] <= place[1] <= surface.y[-1]:
            shape = _MARKS[i % len(_MARKS)]
            look = {"color": "white", "markeredgecolor": "black", "markersize": max(4, 9 - 2 * i), "linestyle": ""}
            handles += axis.plot(*place, marker=shape, label=name, clip_on=False, zorder=5, **look)
    return handles


def _two_lines(label: str) -> str:
    return label.replace(" (", "\n(")  # because panels are narrow


def _line(
    surface: Surface,
    path: Path,
    labels: Sequence[str],
    marks: Mapping[str, NDArray[np.float64]],
    *,
    title: str,
    scale: Scale,
) -> Path:
    losses = [name for name in LOSSES if name in surface.values]
    errors = np.isfinite(surface.values.get(c.ERROR, np.full(1, np.nan))).any()
    with figure(5.5, 5.0 if errors else 3.8, rows=2 if errors else 1) as (drawing, axes):
        axes = np.atleast_1d(axes).reshape(-1)
        for i, name in enumerate(losses):
            values, colour = surface.values[name], COLOURS[i]
            axes[0].plot(surface.x, values, "os^D"[i] + "-", color=colour, markersize=3, label=TITLES[name])
            if name == c.SMOOTHED:
                wide = 2 * surface.values[c.SMOOTHED_ERROR]
                label = "± 2 standard errors"
                shade = {"color": colour, "alpha": 0.25, "linewidth": 0, "label": label}
                axes[0].fill_between(surface.x, values - wide, values + wide, **shade)
        axes[0].set_ylabel("loss")
        value_axis(axes[0], [surface.values[name] for name in losses], scale)
        if errors:
            axes[1].plot(surface.x, surface.values[c.ERROR], ".-", color=COLOURS[4], markersize=4)
            axes[1].set_ylabel("error (%)")
        for axis in axes:
            axis.margins(x=0.02)
            for place in marks.values():
                axis.axvline(float(place[0]), color="black", linewidth=0.8, linestyle=":")
        for mark, place in marks.items():
            at = (float(place[0]), 1)
            look: dict[str, Any] = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center", "fontsize": 8}
            axes[0].annotate(mark, at, xycoords=("data", "axes fraction"), va="bottom", **look)
        axes[-1].set_xlabel(labels[0])
        if len(losses) > 1:
            legend(drawing, axes[0].get_legend_handles_labels()[0])
        heading(drawing, title)
        return save(drawing, path)


def value_axis(axis: Any, values: Sequence[NDArray[np.float64]], scale: Scale, *, log: bool = False) -> None:  # noqa: ANN401 (matplotlib's objects)
    """Set limits and scale of the y axis of a plot.

    Args:
        axis: of matplotlib, with its label, after drawing.
        values: that are drawn.
        scale: what the user chose.
        log: whether the axis is logarithmic if the user did not choose and the values allow it. Default: False.

    Raises:
        InputError: the scale is logarithmic and no value is above 0.
    """
    if scale.limits:
        axis.set_ylim(scale.limits)
    known = np.concatenate([v[np.isfinite(v)].ravel() for v in values] or [np.empty(0)])
    positive = bool(len(known)) and float(known.min()) > 0
    if scale.logarithmic or (scale.logarithmic is None and log and positive):
        if not (known > 0).any():
            raise InputError("--log: expected values > 0, found none")
        axis.set_yscale("log", nonpositive="mask")
        log_axis(axis.yaxis)
