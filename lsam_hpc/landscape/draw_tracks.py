"""The figure of tracks: where chains and center went, over the plane's loss, and how far off it they were."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.landscape import surface as s
from lsam_hpc.landscape.draw_surface import bar, contours, levels
from lsam_hpc.landscape.figures import CENTER, COLOURS, figure, save
from lsam_hpc.landscape.li2018 import Surface
from lsam_hpc.landscape.tracks import Tracks

MOST_NAMED = 8  # ranks that get a colour and a line in the legend each; more share them


@dataclass(frozen=True)
class Losses:
    """Losses along a rank's track.

    Args:
        true: f at the samples, shape (states,).
        plane: f at their projections onto the plane.
    """

    true: NDArray[np.float64]
    plane: NDArray[np.float64]


def draw_tracks(
    found: Tracks,
    path: Path,
    logged: Mapping[int, tuple[NDArray[np.int64], NDArray[Any]]],
    losses: Mapping[int, Losses] | None = None,
    background: Surface | None = None,
    title: str = "",
) -> Path:
    """Draw tracks on their plane, the loss along them, and their distances from the plane.

    Args:
        found: the tracks.
        path: of the figure, .png or .svg.
        logged: total step and mini-batch loss of each rank's steps.
        losses: true and on the plane, by rank. Default: none are drawn.
        background: loss on the plane.
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
            drawn = contours(plane, background.x, background.y, background.values[s.LOSS], at, logarithmic)
            bar(drawn, drawing, [plane], "loss on the plane", logarithmic, at)
        for i, (rank, track) in enumerate(found.ranks.items()):
            colour = COLOURS[i % 6]
            name = f"rank {rank}" if len(found.ranks) <= MOST_NAMED else None
            _track(plane, track, colour, name, background is not None)
            steps, values = logged.get(rank, (np.empty(0, np.int64), np.empty(0)))
            loss.plot(steps, _running_mean(values), color=colour, linewidth=0.6, alpha=0.5)
            off.plot(track.total, track.off, color=colour, linewidth=1)
            if losses and rank in losses:
                own = losses[rank]
                loss.plot(track.total, own.true, "o-", color=colour, markersize=3, linewidth=1)
                loss.plot(track.total, own.plane, "x--", color=colour, markersize=4, linewidth=0.8)
        _center(plane, off, found)
        for (name, place), marker in zip(found.marks.items(), "*PDvs^" * len(found.marks), strict=False):
            plane.plot(*place, marker, color="white", markeredgecolor="black", markersize=10, label=name, zorder=6)
        plane.set_aspect("equal", adjustable="datalim" if background is None else "box")
        _axes(plane, loss, off, found, bool(losses))
        drawing.suptitle(title)
        return save(drawing, path)


def _track(axis: Any, track: Any, colour: str, name: str | None, over_surface: bool) -> None:  # noqa: ANN401
    from matplotlib.collections import LineCollection

    # An exchange: the sample, and the center that it met.
    met = np.isfinite(track.center[:, 0])
    if met.any():
        lines = np.stack([track.sample[met], track.center[met]], 1)
        axis.add_collection(LineCollection(list(lines), colors=colour, linewidths=0.4, alpha=0.5, zorder=2))
    if over_surface:
        axis.plot(*track.sample.T, color="white", linewidth=2.2, zorder=3)
    axis.plot(*track.sample.T, "-", color=colour, linewidth=1.1, label=name, zorder=4)
    axis.plot(*track.sample.T, ".", color=colour, markersize=3, zorder=4)
    axis.plot(*track.sample[0], "o", color="white", markeredgecolor=colour, markersize=6, zorder=5)
    axis.plot(*track.sample[-1], "s", color=colour, markeredgecolor="black", markersize=5, zorder=5)


def _center(plane: Any, off: Any, found: Tracks) -> None:  # noqa: ANN401
    """Draw the center in the order of the steps of all ranks, whichever rank read it."""
    tracks = list(found.ranks.values())
    total = np.concatenate([track.total for track in tracks])
    at = np.concatenate([track.center for track in tracks])
    distance = np.concatenate([track.center_off for track in tracks])
    order = np.argsort(total, kind="stable")
    order = order[np.isfinite(at[order, 0])]
    if len(order):
        plane.plot(*at[order].T, "-", color=CENTER, linewidth=1.6, label="center", zorder=5)
        off.plot(total[order], distance[order], color=CENTER, linewidth=1.4)


def _axes(plane: Any, loss: Any, off: Any, found: Tracks, true: bool) -> None:  # noqa: ANN401
    from matplotlib.lines import Line2D

    plane.set_xlabel(found.labels[0])
    plane.set_ylabel(found.labels[1])
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
    if true:
        lines += [Line2D([], [], color="grey", marker="o", markersize=3, label="true, at the samples"),
                  Line2D([], [], color="grey", marker="x", linestyle="--", markersize=4,
                         label="on the plane, below them")]  # fmt: skip
    loss.legend(handles=lines, fontsize=8)
    off.set_ylabel("distance from the plane")
    off.set_xlabel("steps of all ranks")
    off.set_ylim(bottom=0)


def _running_mean(values: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean of the last hundredth of all values, at each; those that are not finite are left out."""
    width = max(1, len(values) // 100)
    known = np.isfinite(values)
    sums = np.cumsum(np.concatenate([[0.0], np.where(known, values, 0.0)]))
    counts = np.cumsum(np.concatenate([[0], known]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    with np.errstate(invalid="ignore"):
        mean: NDArray[np.float64] = (sums[ends] - sums[starts]) / (counts[ends] - counts[starts])
    return mean
