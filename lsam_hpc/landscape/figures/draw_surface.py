"""Figures of surfaces: losses side by side with a common colour scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.landscape.figures.figures import COLOURS, SURFACE, figure, save
from lsam_hpc.landscape.formats.loss_landscape import Surface
from lsam_hpc.landscape.geometry import surface as s

TITLES = {
    s.LOSS: "loss f",
    s.SAM: "SAM loss f(x + e)",
    s.REGULARISED: "f + rho |grad f|",
    s.SMOOTHED: "smoothed loss F",
    s.ERROR: "error (%)",
}
LEVELS = 14
WIDE = 30.0  # largest / smallest loss above which contour levels are logarithmic
_MARKS = "o^sDvP*X"


def draw_surface(
    surface: Surface,
    path: Path,
    labels: Sequence[str],
    marks: Mapping[str, NDArray[np.float64]] | None = None,
    title: str = "",
) -> Path:
    """Draw a surface that `surface.scan` returned; points without a value are grey.

    Args:
        surface: values on a line or a plane.
        path: of the figure, .png or .svg.
        labels: of the axes.
        marks: coordinates of states, by name.
        title: of the figure.
    """
    return (_line if surface.y is None else _plane)(surface, path, labels, marks or {}, title)


def levels(values: Sequence[NDArray[np.float64]], count: int = LEVELS) -> tuple[NDArray[np.float64], bool]:
    """Return contour levels for several arrays together, and whether the levels are logarithmic."""
    known = np.concatenate([v[np.isfinite(v)] for v in values] or [np.empty(0)])
    if not len(known):
        return np.linspace(0, 1, count), False
    low, high = float(known.min()), float(known.max())
    if high <= low:
        high = low + (abs(low) or 1.0) * 1e-3
    if low > 0 and high / low > WIDE:
        return np.geomspace(low, high, count), True
    return np.linspace(low, high, count), False


def contours(axis: Any, surface: Surface, name: str, at: NDArray[np.float64], *, logarithmic: bool) -> Any:  # noqa: ANN401 (matplotlib's objects)
    """Draw filled contours of a surface's values at given levels; return the object that `bar` needs."""
    from matplotlib.colors import LogNorm, Normalize

    norm = (LogNorm if logarithmic else Normalize)(at[0], at[-1])
    shown = np.ma.masked_invalid(surface.values[name])
    axis.set_facecolor("#cccccc")
    axis.grid(visible=False)
    drawn = axis.contourf(surface.x, surface.y, shown, levels=at, norm=norm, cmap=SURFACE, extend="neither")
    axis.contour(surface.x, surface.y, shown, levels=at, colors="white", linewidths=0.3, alpha=0.6)
    return drawn


def bar(drawn: Any, axes: Any, label: str, at: NDArray[np.float64], *, logarithmic: bool) -> None:  # noqa: ANN401 (matplotlib's objects)
    """Add a colour bar with about six ticks to axes of one figure."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    ticks = at[:: max(1, len(at) // 6)] if logarithmic else np.linspace(at[0], at[-1], 6)
    made = drawn.axes.figure.colorbar(drawn, ax=axes, shrink=0.9, label=label)
    made.ax.yaxis.set_major_locator(FixedLocator(list(ticks)))
    made.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    made.ax.yaxis.set_minor_locator(NullLocator())


def _plane(
    surface: Surface, path: Path, labels: Sequence[str], marks: Mapping[str, NDArray[np.float64]], title: str
) -> Path:
    losses = [name for name in s.LOSSES if name in surface.values]
    errors = [s.ERROR] if np.isfinite(surface.values.get(s.ERROR, np.full(1, np.nan))).any() else []
    names = losses + errors
    at, logarithmic = levels([surface.values[name] for name in losses])
    with figure(1.6 + 3.3 * len(names), 4.1 + 0.2 * bool(marks), cols=len(names)) as (drawing, axes):
        axes = np.atleast_1d(axes).reshape(-1)
        for axis, name in zip(axes, names, strict=True):
            scale = (at, logarithmic) if name in losses else levels([surface.values[name]])
            drawn = contours(axis, surface, name, scale[0], logarithmic=scale[1])
            if name == names[len(losses) - 1]:
                bar(drawn, list(axes[: len(losses)]), "loss", at, logarithmic=logarithmic)
            if name in errors:
                bar(drawn, [axis], "error (%)", scale[0], logarithmic=scale[1])
            for (mark, place), shape in zip(marks.items(), _MARKS * len(marks), strict=False):
                axis.plot(
                    *place, shape, color="white", markeredgecolor="black", markersize=7, label=mark, clip_on=False
                )
            axis.set_title(TITLES[name])
            axis.set_xlabel(labels[0].replace(" (", "\n("))  # two lines, because panels are narrow
        axes[0].set_ylabel(labels[1].replace(" (", "\n("))
        if marks:
            drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6)
        drawing.suptitle(title)
        return save(drawing, path)


def _line(
    surface: Surface, path: Path, labels: Sequence[str], marks: Mapping[str, NDArray[np.float64]], title: str
) -> Path:
    losses = [name for name in s.LOSSES if name in surface.values]
    errors = np.isfinite(surface.values.get(s.ERROR, np.full(1, np.nan))).any()
    with figure(6.0, 5.0 if errors else 3.8, rows=2 if errors else 1) as (drawing, axes):
        axes = np.atleast_1d(axes).reshape(-1)
        for name, colour in zip(losses, COLOURS, strict=False):
            axes[0].plot(surface.x, surface.values[name], ".-", color=colour, markersize=3, label=TITLES[name])
            if name == s.SMOOTHED:
                wide = 2 * surface.values[s.SMOOTHED_ERROR]
                axes[0].fill_between(
                    surface.x,
                    surface.values[name] - wide,
                    surface.values[name] + wide,
                    color=colour,
                    alpha=0.25,
                    linewidth=0,
                    label="± 2 standard errors",
                )
        axes[0].set_ylabel("loss")
        if errors:
            axes[1].plot(surface.x, surface.values[s.ERROR], ".-", color=COLOURS[4], markersize=3)
            axes[1].set_ylabel("error (%)")
        for axis in axes:
            for place in marks.values():
                axis.axvline(float(place[0]), color="black", linewidth=0.6, linestyle=":")
        for mark, place in marks.items():
            axes[0].annotate(
                mark,
                (float(place[0]), 1),
                xycoords=("data", "axes fraction"),
                xytext=(3, -2),
                textcoords="offset points",
                va="top",
                fontsize=8,
            )
        axes[-1].set_xlabel(labels[0])
        if len(losses) > 1:
            axes[0].legend()
        drawing.suptitle(title)
        return save(drawing, path)
