"""Trajectories of several runs: a panel for each run's plane, with equal scales and common levels of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.landscape.compare.comparison import Case, Comparison, of_rows
from lsam_hpc.landscape.figures.draw_surface import bar, contours, levels
from lsam_hpc.landscape.figures.figures import COLOURS, figure, save
from lsam_hpc.landscape.figures.scales import LOG, log_axis, log_ticks
from lsam_hpc.landscape.figures.stored import Drawn, Stored, tracks_of
from lsam_hpc.landscape.geometry import columns as s
from lsam_hpc.landscape.geometry.tracks import center_tracks

MARGIN = 0.08  # around the tracks, as a share of their extent
LEAST = 0.7  # smallest extent of the tracks that is drawn, as a share of the largest


def compare_tracks(cases: Sequence[Case], numbers: Sequence[Stored], how: Mapping[str, Any]) -> Comparison:
    """Return the comparison of trajectories; `how` says `about` which data the losses are."""
    drawn = list(map(tracks_of, numbers))
    text, table = of_rows([_numbers(case, of_run) for case, of_run in zip(cases, drawn, strict=True)])
    return Comparison(text, table, partial(_draw, list(zip(cases, drawn, strict=True)), how["about"]))


def _box(drawn: Drawn) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the middle of the tracks or of the surface, and half of its extent along both axes, shape (2,) each."""
    surface = drawn.background
    if surface is not None and surface.y is not None:
        at = np.array([[axis[i] for axis in (surface.x, surface.y)] for i in (0, -1)])
    else:
        states = [at for track in drawn.tracks.ranks.values() for at in (track.sample, track.center)]
        at = np.concatenate([*states, *(place[None] for place in drawn.tracks.marks.values())])
        at = at[np.isfinite(at).all(1)]
    low, high = at.min(0), at.max(0)
    extent = np.maximum(high - low, LEAST * (float((high - low).max()) or 1.0))
    return (low + high) / 2, extent * (0.5 if surface is not None else 0.5 + MARGIN)


def _numbers(case: Case, drawn: Drawn) -> dict[str, Any]:
    tracks = drawn.tracks
    off = np.concatenate([track.off for track in tracks.ranks.values()])
    moved = [float(np.linalg.norm(center.at[-1] - center.at[0])) for center in center_tracks(tracks)]
    apart = [float(np.linalg.norm(track.sample[-1] - track.center[-1])) for track in tracks.ranks.values()]
    last = [losses.true[-1] for losses in drawn.losses.values()]
    return {
        "run": case.run,
        "source": tracks.source,
        "ranks": len(tracks.ranks),
        "states": sum(len(track.total) for track in tracks.ranks.values()),
        "steps": int(max(track.total[-1] for track in tracks.ranks.values())),
        "%_of_variance": np.nan if tracks.explained is None else 100 * float(tracks.explained.sum()),
        "off_plane_(median)": float(np.median(off)),
        "center_moved": float(np.mean(moved)) if moved else np.nan,
        "samples_from_center_at_end": float(np.nanmean(apart)) if np.isfinite(apart).any() else np.nan,
        "last_loss_of_samples": float(np.mean(last)) if last else np.nan,
    }


def _draw(stored: Sequence[tuple[Case, Drawn]], about: str, path: Path) -> Path:
    from matplotlib.lines import Line2D

    half = np.max([_box(of_run)[1] for _, of_run in stored], axis=0)
    surfaces = [of_run.background for _, of_run in stored if of_run.background is not None]
    at, logarithmic = levels([surface.values[s.LOSS] for surface in surfaces])
    with_losses = any(of_run.losses for _, of_run in stored)
    cols = len(stored)
    height = 3.0 * float(half[1] / half[0]) + 0.5
    width = 0.9 + 3.2 * cols + bool(surfaces)
    with figure(width, 0.9 + height + 1.9 * with_losses, 1 + with_losses, cols) as (drawing, grid):
        grid = np.reshape(grid, (1 + with_losses, cols))
        if with_losses:
            grid[0, 0].get_gridspec().set_height_ratios([height, 1.9])
        for axis, (case, of_run) in zip(grid[0], stored, strict=True):
            _plane(axis, case, of_run, at, logarithmic=logarithmic)
            low, high = (_box(of_run)[0] + sign * half for sign in (-1, 1))
            axis.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
            axis.set_aspect("equal")
            axis.locator_params(nbins=5)
            axis.set_title(case.run, fontweight="bold")
            for name, label in zip("xy", of_run.tracks.labels, strict=True):
                getattr(axis, f"set_{name}label")(label.replace(" (", "\n("), fontsize=8)
        if surfaces:
            drawn = next(axis.collections[0] for axis in grid[0] if axis.collections)
            bar(drawn, list(grid[0]), "loss on the plane", at, logarithmic=logarithmic)
        if with_losses:
            _losses(grid[1], [of_run for _, of_run in stored])
        handles = [Line2D([], [], label=f"center of {case.run}", **_broad(case)) for case, _ in stored]
        ranks = max(len(of_run.tracks.ranks) for _, of_run in stored)
        handles += [Line2D([], [], color=COLOURS[i], label=f"rank {i}") for i in range(min(ranks, 6))]
        marker: dict[str, Any] = {"linestyle": "", "markeredgecolor": "black"}
        handles.append(Line2D([], [], marker="o", markerfacecolor="white", label="first state", **marker))
        handles.append(Line2D([], [], marker="s", markerfacecolor="grey", label="last state", **marker))
        drawing.legend(handles=handles, loc="outside lower center", ncols=5)
        sources = " and ".join(dict.fromkeys(of_run.tracks.source for _, of_run in stored))
        drawing.suptitle(f"From {sources}, equal scales{f', {about}' if about else ''}")
        return save(drawing, path)


def _broad(case: Case) -> dict[str, Any]:
    """Return the style of a run's center: as broad as in the figure of one run, in the run's colour."""
    return {"color": case.style["color"], "linewidth": 4, "alpha": 0.5}


def _plane(axis: Any, case: Case, stored: Drawn, at: NDArray[np.float64], *, logarithmic: bool) -> None:  # noqa: ANN401 (matplotlib's objects)
    if stored.background is not None:
        contours(axis, stored.background, s.LOSS, at, logarithmic=logarithmic)
        axis.set_facecolor("white")
    for i, track in enumerate(stored.tracks.ranks.values()):
        colour = COLOURS[i % 6]
        axis.plot(*track.sample.T, "-", color=colour, linewidth=0.9, zorder=4)
        axis.plot(*track.sample[0], "o", color="white", markeredgecolor=colour, markersize=6, zorder=5)
        axis.plot(*track.sample[-1], "s", color=colour, markeredgecolor="black", markersize=5, zorder=5)
    for center in center_tracks(stored.tracks):
        axis.plot(*center.at.T, "-", zorder=3, **_broad(case))


def _losses(axes: Any, stored: Sequence[Drawn]) -> None:  # noqa: ANN401 (matplotlib's objects)
    """Draw the loss at the samples (lines), and at their projections onto the plane (dashed), on one scale."""
    pairs = [losses for of_run in stored for losses in of_run.losses.values()]
    known = np.concatenate([v[np.isfinite(v)] for losses in pairs for v in (losses.true, losses.plane)])
    known = known[known > 0]
    for axis, of_run in zip(axes, stored, strict=True):
        for i, (rank, losses) in enumerate(of_run.losses.items()):
            total = of_run.tracks.ranks[rank].total
            axis.plot(total, losses.true, ".-", color=COLOURS[i % 6], markersize=4, linewidth=1)
            axis.plot(total, losses.plane, "--", color=COLOURS[i % 6], linewidth=0.8)
        axis.set_ylim(0.7 * float(known.min()), 1.4 * float(known.max()))
        log_axis(axis.yaxis)
        axis.set_xscale("symlog", linthresh=10)
        axis.set_xlim(left=0)
        axis.set_xlabel("steps of all ranks")
        log_ticks(axis.xaxis)
        axis.set_ylabel(f"loss at the samples, {LOG}\n(dashed: on the plane)" if axis is axes[0] else "")
        axis.tick_params(labelleft=axis is axes[0])
