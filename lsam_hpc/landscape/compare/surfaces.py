"""Surfaces of several runs: curves in common axes, or panels with common levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.landscape.compare.comparison import Case, Comparison, named, of_rows
from lsam_hpc.landscape.figures.draw_surface import TITLES, bar, contours, levels
from lsam_hpc.landscape.figures.figures import figure, save
from lsam_hpc.landscape.figures.scales import log_axis
from lsam_hpc.landscape.figures.stored import Stored, surface_of
from lsam_hpc.landscape.formats.loss_landscape import Surface
from lsam_hpc.landscape.geometry import columns as s

PANEL = 2.6  # width of a panel in inches
Marks = Mapping[str, Sequence[float]]
Drawn = Sequence[tuple[Case, Surface, Marks]]


def compare_surfaces(cases: Sequence[Case], numbers: Sequence[Stored], how: Mapping[str, Any]) -> Comparison:
    """Return the comparison of surfaces, all on a line or all on a plane.

    Args:
        cases: the runs.
        numbers: of their surfaces.
        how: title, `labels` of the axes, and `marks`: coordinates of states, by name, for each case.
    """
    surfaces = list(map(surface_of, numbers))
    text, table = of_rows([row for case, surface in zip(cases, surfaces, strict=True) for row in _rows(case, surface)])
    draw = _lines if surfaces[0].y is None else _planes
    marks = how["marks"]
    return Comparison(
        text, table, partial(draw, list(zip(cases, surfaces, marks, strict=True)), how["labels"], how["title"])
    )


def _rows(case: Case, surface: Surface) -> list[dict[str, Any]]:
    at = _origin(surface)
    rows = []
    for kind in (name for name in s.LOSSES if name in surface.values):
        values = surface.values[kind]
        finite = values[np.isfinite(values)]
        here = float(values[at]) if at else np.nan
        error = surface.values.get(s.ERROR)
        rows.append(
            {
                "run": case.run,
                "split": case.split,
                "value": kind,
                "at_0": here,
                "error_%_at_0": float(error[at]) if kind == s.LOSS and error is not None and at else np.nan,
                "smallest": float(finite.min()) if len(finite) else np.nan,
                "largest": float(finite.max()) if len(finite) else np.nan,
                "mean_rise": float(finite.mean()) - here if len(finite) else np.nan,
                "effective_samples": float(np.nanmedian(surface.values[s.EFFECTIVE])) if kind == s.SMOOTHED else np.nan,
                "not_finite": values.size - len(finite) or None,
            }
        )
    return rows


def _origin(surface: Surface) -> tuple[int, ...] | None:
    """Return the index of the point 0; None if it is not on the grid."""
    axes = [surface.x] if surface.y is None else [surface.y, surface.x]
    at = tuple(int(np.abs(axis).argmin()) for axis in axes)
    near = all(abs(axis[i]) <= 1e-9 * np.abs(axis).max() for axis, i in zip(axes, at, strict=True))
    return at if near else None


def _shown(surfaces: Sequence[Surface]) -> tuple[list[str], bool]:
    """Return the losses that the surfaces have, and whether they have an error too."""
    losses = [name for name in s.LOSSES if name in surfaces[0].values]
    return losses, any(np.isfinite(surface.values.get(s.ERROR, np.nan)).any() for surface in surfaces)


def _lines(drawn: Drawn, labels: Sequence[str], title: str, path: Path) -> Path:
    cases, surfaces, marks = zip(*drawn, strict=True)
    losses, with_error = _shown(surfaces)
    at, logarithmic = levels([surface.values[name] for surface in surfaces for name in losses])
    kinds = [*losses, *([s.ERROR] if with_error else [])]
    with figure(6.5, 1.0 + 2.4 * len(kinds), rows=len(kinds)) as (drawing, axes):
        axes = np.atleast_1d(axes).reshape(-1)
        for axis, kind in zip(axes, kinds, strict=True):
            for case, surface, name in zip(cases, surfaces, named(cases), strict=True):
                axis.plot(surface.x, surface.values[kind], label=name, linewidth=1.4, **case.style)
                if kind == s.SMOOTHED:
                    wide = 2 * surface.values[s.SMOOTHED_ERROR]
                    low, high = surface.values[kind] - wide, surface.values[kind] + wide
                    axis.fill_between(surface.x, low, high, color=case.style["color"], alpha=0.2, linewidth=0)
            axis.set_ylabel(TITLES[kind])
            for mark, place in marks[0].items():
                axis.axvline(float(place[0]), color="black", linewidth=0.6, linestyle=":")
                if axis is axes[0]:
                    _annotate(axis, mark, float(place[0]))
            if kind in losses:
                margin = 0.04
                if logarithmic:
                    axis.set_ylim(at[0] * (at[0] / at[-1]) ** margin, at[-1] * (at[-1] / at[0]) ** margin)
                    log_axis(axis.yaxis)
                else:
                    axis.set_ylim(at[0] - margin * (at[-1] - at[0]), at[-1] + margin * (at[-1] - at[0]))
            axis.set_xlim(min(v.x[0] for v in surfaces), max(v.x[-1] for v in surfaces))
            if axis is not axes[-1]:
                axis.tick_params(labelbottom=False)
        axes[-1].set_xlabel(labels[0])
        drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        drawing.suptitle(title)
        return save(drawing, path)


def _annotate(axis: Any, mark: str, at: float) -> None:  # noqa: ANN401 (matplotlib's objects)
    where = {"xycoords": ("data", "axes fraction"), "xytext": (3, -2), "textcoords": "offset points"}
    axis.annotate(mark, (at, 1), va="top", fontsize=8, **where)


def _planes(drawn: Drawn, labels: Sequence[str], title: str, path: Path) -> Path:
    cases, surfaces, _ = zip(*drawn, strict=True)
    losses, with_error = _shown(surfaces)
    splits, runs = list(dict.fromkeys(case.split for case in cases)), list(dict.fromkeys(case.run for case in cases))
    rows = [(kind, split) for kind in (*losses, *([s.ERROR] if with_error else [])) for split in splits]
    by = {(case.run, case.split): (surface, states) for case, surface, states in drawn}
    low = [min(axis[0] for axis in along) for along in ([v.x for v in surfaces], [v.y for v in surfaces])]
    high = [max(axis[-1] for axis in along) for along in ([v.x for v in surfaces], [v.y for v in surfaces])]
    height = PANEL * min(1.6, max(0.5, (high[1] - low[1]) / (high[0] - low[0])))
    with figure(1.9 + PANEL * len(runs), 1.0 + (height + 0.1) * len(rows), len(rows), len(runs)) as (drawing, grid):
        grid = np.reshape(grid, (len(rows), len(runs)))
        for kinds, label in ((losses, "loss"), ((s.ERROR,), "error (%)")):
            of_group = [i for i, (kind, _) in enumerate(rows) if kind in kinds]
            if not of_group:
                continue
            at, logarithmic = levels([surface.values[kind] for surface in surfaces for kind in kinds])
            for i in of_group:
                for j, run in enumerate(runs):
                    surface, states = by[run, rows[i][1]]
                    filled = contours(grid[i, j], surface, rows[i][0], at, logarithmic=logarithmic)
                    for place in states.values():
                        grid[i, j].plot(*place, "P", color="white", markeredgecolor="black", markersize=7)
            bar(filled, list(grid[of_group].reshape(-1)), label, at, logarithmic=logarithmic)
        for i, (kind, split) in enumerate(rows):
            for j, run in enumerate(runs):
                axis = grid[i, j]
                axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
                axis.locator_params(nbins=4)
                axis.tick_params(labelbottom=i == len(rows) - 1, labelleft=j == 0)
                if i == 0:
                    axis.set_title(run, fontweight="bold")
            of_split = f", {split} data" if len(splits) > 1 else ""
            grid[i, 0].set_ylabel(f"{TITLES[kind]}{of_split}\n{labels[1]}", fontsize=8)
        for axis in grid[-1]:
            axis.set_xlabel(labels[0], fontsize=8)
        drawing.suptitle(title)
        return save(drawing, path)
