"""Trajectories of several runs: a panel for each run's plane, with equal scales and common levels of the loss."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lsam_hpc.landscape.compare.comparison import Case, Comparison, of_rows
from lsam_hpc.landscape.figures.draw_surface import bar, contours, levels
from lsam_hpc.landscape.figures.figures import CENTER, COLOURS, figure, save
from lsam_hpc.landscape.figures.scales import LOG, log_axis, log_ticks
from lsam_hpc.landscape.formats.loss_landscape import Surface
from lsam_hpc.landscape.geometry import surface as s
from lsam_hpc.landscape.geometry.tracks import Track, Tracks, center_tracks
from lsam_hpc.landscape.report.tables import NOTES

MARGIN = 0.08  # around the tracks, as a share of their extent
LEAST = 0.7  # smallest extent of the tracks that is drawn, as a share of the largest
FIELDS = ("iteration", "total_iteration", "center_version", "off_plane", "center_off_plane")


@dataclass(frozen=True)
class Stored:
    """A run's tracks, the loss along them and on their plane, from its .h5 file."""

    tracks: Tracks
    losses: dict[int, tuple[NDArray[np.float64], NDArray[np.float64]]]
    background: Surface | None

    @property
    def box(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Middle of the tracks or of the surface, and half of its extent along both axes, shape (2,) each."""
        states = [at for track in self.tracks.ranks.values() for at in (track.sample, track.center)]
        at = np.concatenate([*states, *(place[None] for place in self.tracks.marks.values())])
        at = at[np.isfinite(at).all(1)]
        if self.background is not None and self.background.y is not None:
            corners = [[axis[i] for axis in (self.background.x, self.background.y)] for i in (0, -1)]
            at = np.array(corners)
        low, high = at.min(0), at.max(0)
        extent = np.maximum(high - low, LEAST * (float((high - low).max()) or 1.0))
        return (low + high) / 2, extent * (0.5 if self.background is not None else 0.5 + MARGIN)


def compare_tracks(cases: Sequence[Case], one_center: Sequence[bool], about: str) -> Comparison:
    """Return the comparison of trajectories, from the .h5 files.

    Args:
        cases: the runs.
        one_center: for each, whether its ranks share one center.
        about: the data of the losses; empty if there are none.
    """
    stored = [_read(case.file(".h5"), one_center=one) for case, one in zip(cases, one_center, strict=True)]
    text, table = of_rows([_numbers(case, of_run) for case, of_run in zip(cases, stored, strict=True)])
    return Comparison(text, table, partial(_draw, list(zip(cases, stored, strict=True)), about))


def _read(path: Path, *, one_center: bool) -> Stored:
    with h5py.File(path) as file:
        notes = json.loads(file.attrs[NOTES])
        names = ("rank", "x", "y", "center_x", "center_y", *FIELDS)
        columns = {name: np.asarray(file[name][()]) for name in names}
        along = [np.asarray(file[name][()]) for name in ("loss", "plane_loss") if name in file]
        marks = [str(name) for name in file["marks"].asstr()[()]] if "marks" in file else []
        places = np.asarray(file["marks_at"][()]) if marks else np.empty((0, 2))
        background = None
        if "surface/loss" in file:
            x, y, loss = (np.asarray(file[f"surface/{name}"][()]) for name in ("x", "y", "loss"))
            background = Surface(x, y, {s.LOSS: loss})
    explained = None if notes["explained"] is None else np.array(notes["explained"])
    if explained is not None:
        signs = _signs(np.stack([columns["x"], columns["y"]], 1), columns["total_iteration"])
        for axis, sign in zip("xy", signs, strict=True):
            columns[axis], columns[f"center_{axis}"] = sign * columns[axis], sign * columns[f"center_{axis}"]
        places = places * signs
        if background is not None and background.y is not None:
            steps = [int(sign) for sign in signs]
            loss = background.values[s.LOSS][:: steps[1], :: steps[0]]
            x, y = signs[0] * background.x[:: steps[0]], signs[1] * background.y[:: steps[1]]
            background = Surface(x, y, {s.LOSS: loss})
    ranks, losses = {}, {}
    for rank in np.unique(columns["rank"]):
        row = columns["rank"] == rank
        of_rank = {name: values[row] for name, values in columns.items()}
        iteration, total, version, off, center_off = (of_rank[name] for name in FIELDS)
        sample, center = (np.stack([of_rank[f"{kind}{axis}"] for axis in "xy"], 1) for kind in ("", "center_"))
        ranks[int(rank)] = Track(iteration, total, version, sample, off, center, center_off)
        if along:
            losses[int(rank)] = (along[0][row], along[1][row])
    at = dict(zip(marks, places, strict=True))
    of_run = Tracks(notes["source"], ranks, tuple(notes["labels"]), explained, None, {}, at, one_center=one_center)
    return Stored(of_run, losses, background)


def _signs(at: NDArray[np.float64], total: NDArray[Any]) -> NDArray[np.float64]:
    """Return signs of principal components, which are arbitrary, so that runs start on the left and turn upwards."""
    first, last = at[total == total.min()].mean(0), at[total == total.max()].mean(0)
    turn = at[:, 1].mean() - (first[1] + last[1]) / 2
    return np.array([1.0 if first[0] <= last[0] else -1.0, 1.0 if turn >= 0 else -1.0])


def _numbers(case: Case, stored: Stored) -> dict[str, Any]:
    tracks = stored.tracks
    off = np.concatenate([track.off for track in tracks.ranks.values()])
    moved = [float(np.linalg.norm(center.at[-1] - center.at[0])) for center in center_tracks(tracks)]
    apart = [float(np.linalg.norm(track.sample[-1] - track.center[-1])) for track in tracks.ranks.values()]
    last = [true[-1] for true, _ in stored.losses.values()]
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


def _draw(stored: Sequence[tuple[Case, Stored]], about: str, path: Path) -> Path:
    from matplotlib.lines import Line2D

    half = np.max([of_run.box[1] for _, of_run in stored], axis=0)
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
            _plane(axis, of_run, at, logarithmic=logarithmic)
            low, high = (of_run.box[0] + sign * half for sign in (-1, 1))
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
        handles = [Line2D([], [], color=CENTER, linewidth=2.4, label="center")]
        ranks = max(len(of_run.tracks.ranks) for _, of_run in stored)
        handles += [Line2D([], [], color=COLOURS[i], label=f"rank {i}") for i in range(min(ranks, 6))]
        marker: dict[str, Any] = {"linestyle": "", "markeredgecolor": "black"}
        handles.append(Line2D([], [], marker="o", markerfacecolor="white", label="first state", **marker))
        handles.append(Line2D([], [], marker="s", markerfacecolor="grey", label="last state", **marker))
        drawing.legend(handles=handles, loc="outside lower center", ncols=5)
        sources = " and ".join(dict.fromkeys(of_run.tracks.source for _, of_run in stored))
        drawing.suptitle(f"From {sources}, equal scales{f', {about}' if about else ''}")
        return save(drawing, path)


def _plane(axis: Any, stored: Stored, at: NDArray[np.float64], *, logarithmic: bool) -> None:  # noqa: ANN401 (matplotlib's objects)
    if stored.background is not None:
        contours(axis, stored.background, s.LOSS, at, logarithmic=logarithmic)
        axis.set_facecolor("white")
    for i, track in enumerate(stored.tracks.ranks.values()):
        colour = COLOURS[i % 6]
        axis.plot(*track.sample.T, "-", color=colour, linewidth=0.9, zorder=4)
        axis.plot(*track.sample[0], "o", color="white", markeredgecolor=colour, markersize=6, zorder=5)
        axis.plot(*track.sample[-1], "s", color=colour, markeredgecolor="black", markersize=5, zorder=5)
    for center in center_tracks(stored.tracks):
        axis.plot(*center.at.T, "-", color=CENTER, linewidth=2.4, zorder=3)


def _losses(axes: Any, stored: Sequence[Stored]) -> None:  # noqa: ANN401 (matplotlib's objects)
    """Draw the loss at the samples (lines), and at their projections onto the plane (dashed), on one scale."""
    pairs = [pair for of_run in stored for pair in of_run.losses.values()]
    known = np.concatenate([values[np.isfinite(values)] for pair in pairs for values in pair])
    known = known[known > 0]
    for axis, of_run in zip(axes, stored, strict=True):
        for i, (rank, (true, plane)) in enumerate(of_run.losses.items()):
            total = of_run.tracks.ranks[rank].total
            axis.plot(total, true, ".-", color=COLOURS[i % 6], markersize=4, linewidth=1)
            axis.plot(total, plane, "--", color=COLOURS[i % 6], linewidth=0.8)
        axis.set_ylim(0.7 * float(known.min()), 1.4 * float(known.max()))
        log_axis(axis.yaxis)
        axis.set_xscale("symlog", linthresh=10)
        axis.set_xlim(left=0)
        axis.set_xlabel("steps of all ranks")
        log_ticks(axis.xaxis)
        axis.set_ylabel(f"loss at the samples, {LOG}\n(dashed: on the plane)" if axis is axes[0] else "")
        axis.tick_params(labelleft=axis is axes[0])
