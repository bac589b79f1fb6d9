"""The figure of tracks: samples and center on a plane, the loss, and distances from the plane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.landscape.figures.draw_surface import bar, contours, levels
from lsam_hpc.landscape.figures.figures import CENTER, COLOURS, figure, save
from lsam_hpc.landscape.formats.loss_landscape import Surface
from lsam_hpc.landscape.geometry import surface as s
from lsam_hpc.landscape.geometry.tracks import Tracks, center_tracks

MOST_NAMED = 8  # largest number of ranks for which the legend names each rank


@dataclass(frozen=True)
class Losses:
    """Losses along a rank's track.

    Args:
        true: f at the samples, shape (states,).
        plane: f at their projections onto the plane, shape (states,).
    """

    true: NDArray[np.float64]
    plane: NDArray[np.float64]


def draw_tracks(
    tracks: Tracks,
    path: Path,
    logged: Mapping[int, tuple[NDArray[np.int64], NDArray[Any]]],
    losses: Mapping[int, Losses] | None = None,
    background: Surface | None = None,
    *,
    title: str = "",
) -> Path:
    """Draw tracks on their plane, the loss along them, and their distances from the plane.

    Args:
        tracks: coordinates of samples and center.
        path: of the figure, .png or .svg.
        logged: by rank, total step and mini-batch loss of each of its steps.
        losses: losses at the samples and on the plane, by rank. Default: none are drawn.
        background: loss on the plane. Default: none is drawn.
        title: of the figure.
    """
    with figure(10.5, 6.2, rows=2, cols=2) as (drawing, grid):
        shape = grid[0, 0].get_gridspec()
        shape.set_width_ratios([1.7, 1])
        for axis in grid[:, 0]:
            axis.remove()
        plane, loss, off = drawing.add_subplot(shape[:, 0]), grid[0, 1], grid[1, 1]
        if background is not None:
            at, logarithmic = levels([background.values[s.LOSS]])
            drawn = contours(plane, background, s.LOSS, at, logarithmic=logarithmic)
            bar(drawn, [plane], "loss on the plane", at, logarithmic=logarithmic)
        for i, (rank, track) in enumerate(tracks.ranks.items()):
            colour = COLOURS[i % 6]
            name = f"rank {rank}" if len(tracks.ranks) <= MOST_NAMED else None
            _track(plane, track, colour, name, over_surface=background is not None)
            steps, values = logged.get(rank, (np.empty(0, np.int64), np.empty(0)))
            loss.plot(steps, _running_mean(values), color=colour, linewidth=0.6, alpha=0.5)
            off.plot(track.total, track.off, color=colour, linewidth=1)
            if losses and rank in losses:
                loss.plot(track.total, losses[rank].true, "o-", color=colour, markersize=3, linewidth=1)
                loss.plot(track.total, losses[rank].plane, "x--", color=colour, markersize=4, linewidth=0.8)
        _center(plane, off, tracks)
        for (name, place), marker in zip(tracks.marks.items(), "*PDvs^" * len(tracks.marks), strict=False):
            plane.plot(*place, marker, color="white", markeredgecolor="black", markersize=10, label=name, zorder=6)
        plane.set_aspect("equal", adjustable="datalim" if background is None else "box")
        _axes(plane, loss, off, tracks, with_losses=bool(losses))
        drawing.suptitle(title)
        return save(drawing, path)


def _track(axis: Any, track: Any, colour: str, name: str | None, *, over_surface: bool) -> None:  # noqa: ANN401 (matplotlib's objects)
    from matplotlib.collections import LineCollection

    # A thin line per exchange, from the sample to the center that the rank read.
    exchanged = np.isfinite(track.center[:, 0])
    if exchanged.any():
        lines = np.stack([track.sample[exchanged], track.center[exchanged]], 1)
        axis.add_collection(LineCollection(list(lines), colors=colour, linewidths=0.4, alpha=0.5, zorder=2))
    if over_surface:
        axis.plot(*track.sample.T, color="white", linewidth=2.2, zorder=3)
    axis.plot(*track.sample.T, "-", color=colour, linewidth=1.1, label=name, zorder=4)
    axis.plot(*track.sample.T, ".", color=colour, markersize=3, zorder=4)
    axis.plot(*track.sample[0], "o", color="white", markeredgecolor=colour, markersize=6, zorder=5)
    axis.plot(*track.sample[-1], "s", color=colour, markeredgecolor="black", markersize=5, zorder=5)


def _center(plane: Any, off: Any, tracks: Tracks) -> None:  # noqa: ANN401 (matplotlib's objects)
    """Draw each center as the ranks read it, in the order of its versions."""
    for i, center in enumerate(center_tracks(tracks)):
        plane.plot(*center.at.T, "-", color=CENTER, linewidth=1.6, label=None if i else "center", zorder=5)
        off.plot(center.total, center.off, color=CENTER, linewidth=1.4)


def _axes(plane: Any, loss: Any, off: Any, tracks: Tracks, *, with_losses: bool) -> None:  # noqa: ANN401 (matplotlib's objects)
    from matplotlib.lines import Line2D

    plane.set_xlabel(tracks.labels[0])
    plane.set_ylabel(tracks.labels[1])
    extra = [
        Line2D([], [], marker="o", linestyle="", markerfacecolor="white", markeredgecolor="black", label="first state"),
        Line2D([], [], marker="s", linestyle="", color="grey", markeredgecolor="black", label="last state"),
        Line2D([], [], color="grey", linewidth=0.6, label="exchange: sample to center"),
    ]
    handles, _ = plane.get_legend_handles_labels()
    plane.legend(handles=[*handles, *extra], loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4, fontsize=8)
    loss.set_yscale("log")
    loss.set_ylabel("loss")
    loss.set_xlabel("steps of all ranks")
    lines = [Line2D([], [], color="grey", linewidth=0.6, label="mini-batches, running mean")]
    if with_losses:
        lines += [
            Line2D([], [], color="grey", marker="o", markersize=3, label="at the samples"),
            Line2D([], [], color="grey", marker="x", linestyle="--", markersize=4, label="at their projections"),
        ]
    loss.legend(handles=lines, fontsize=8)
    off.set_ylabel("distance from the plane")
    off.set_xlabel("steps of all ranks")
    off.set_ylim(bottom=0)


def _running_mean(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the running mean over the last 1 % of the values, without those that are not finite."""
    width = max(1, len(values) // 100)
    known = np.isfinite(values)
    sums = np.cumsum(np.concatenate([[0.0], np.where(known, values, 0.0)]))
    counts = np.cumsum(np.concatenate([[0], known]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = (sums[ends] - sums[starts]) / (counts[ends] - counts[starts])
    return mean
