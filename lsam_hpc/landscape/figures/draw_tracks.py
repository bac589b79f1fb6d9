"""The figure of tracks: samples and center on a plane, the loss, and distances from the plane."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.landscape.figures.draw_surface import bar, contours, levels, value_axis
from lsam_hpc.landscape.figures.figures import CENTER, COLOURS, figure, heading, legend, save
from lsam_hpc.landscape.figures.scales import AUTOMATIC, Scale
from lsam_hpc.landscape.figures.steps import label_steps
from lsam_hpc.landscape.formats.loss_landscape import Surface
from lsam_hpc.landscape.geometry import columns as c
from lsam_hpc.landscape.geometry.tracks import Track, Tracks, center_tracks

MOST_NAMED = 8  # largest number of ranks for which the legend names each rank
MOST_MARKED = 40  # largest number of states of a rank at which each gets a marker
WIDE = 1.3  # width / height of the plane from which on the other panels are below it
PALE = 0.5  # share of white in the colours of the loss below the tracks


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
    scale: Scale = AUTOMATIC,
) -> Path:
    """Draw tracks on their plane, the loss along them, and their distances from the plane.

    Args:
        tracks: coordinates of samples and center.
        path: of the figure, see `figures.save`.
        logged: by rank, total step and mini-batch loss of each of its steps.
        losses: losses at the samples and on the plane, by rank. Default: none are drawn.
        background: loss on the plane. Default: none is drawn.
        title: of the figure.
        scale: of the loss on the plane. Default: as suits it.
    """
    ratio = _ratio(tracks, background)
    wide = ratio > WIDE
    size = (7.0, 6.0 / ratio + 4.0) if wide else (7.4 if ratio < 1 else 8.0, 5.6)
    with figure(*size) as (drawing, plane):
        plane.remove()
        if wide:
            grid = drawing.add_gridspec(2, 2, height_ratios=[6.0 / ratio + 0.6, 2.4])
            plane = drawing.add_subplot(grid[0, :])
            loss, off = drawing.add_subplot(grid[1, 0]), drawing.add_subplot(grid[1, 1])
        else:
            grid = drawing.add_gridspec(2, 2, width_ratios=[4.2 * ratio + 0.9 * (background is not None), 2.8])
            plane = drawing.add_subplot(grid[:, 0])
            loss, off = drawing.add_subplot(grid[0, 1]), drawing.add_subplot(grid[1, 1])
        if background is not None:
            at, logarithmic = levels([background.values[c.LOSS]], scale=scale)
            free = np.concatenate(
                [*(track.sample for track in tracks.ranks.values()), *tracks.marks.values()], axis=None
            )
            how: dict[str, Any] = {"logarithmic": logarithmic, "pale": PALE, "free": free.reshape(-1, 2)}
            drawn = contours(plane, background, c.LOSS, at, **how)
            bar(drawn, plane, "loss on the plane", at, logarithmic=logarithmic)
            plane.set(xlim=background.x[[0, -1]], ylim=background.y[[0, -1]])  # type: ignore[index]
        handles = _plane(plane, tracks)
        _panels(loss, off, tracks, logged, losses or {})
        plane.set_aspect("equal", adjustable="datalim" if background is None else "box")
        loss.legend(handles=_line_handles(with_losses=bool(losses)), fontsize=7, loc="upper right")
        legend(drawing, handles)
        heading(drawing, title)
        first = next(iter(tracks.ranks.values()))
        label_steps(plane, first, of_each=tracks.source == "snapshots")
        return save(drawing, path)


def _ratio(tracks: Tracks, background: Surface | None) -> float:
    """Return width / height of what the plane shows, within bounds in which the figure has no void."""
    if background is not None:
        width, height = float(np.ptp(background.x)), float(np.ptp(background.y))  # type: ignore[arg-type]
    else:
        at = np.concatenate([track.sample for track in tracks.ranks.values()])
        width, height = np.ptp(at, axis=0).tolist()
    return float(np.clip(width / max(height, 1e-3 * width, 1e-300), 0.6, 3.0))


def _plane(plane: Any, tracks: Tracks) -> list[Any]:  # noqa: ANN401 (matplotlib's objects)
    """Draw the center as a broad grey line, and the ranks' samples on it; return the legend's handles."""
    from matplotlib.lines import Line2D

    handles: list[Any] = []
    for i, center in enumerate(center_tracks(tracks)):
        label = "_" if i else "center"
        handles += plane.plot(*center.at.T, "-", color=CENTER, alpha=0.35, linewidth=4, label=label, zorder=3)
    for i, (rank, track) in enumerate(tracks.ranks.items()):
        name = f"rank {rank}" if len(tracks.ranks) <= MOST_NAMED else f"{len(tracks.ranks)} ranks" if i == 0 else "_"
        handles += _track(plane, track, COLOURS[i % 6], name)
    plane.set_xlabel(tracks.labels[0])
    plane.set_ylabel(tracks.labels[1].replace(" (", "\n("))
    shapes = zip(tracks.marks.items(), "*PDvs^" * len(tracks.marks), strict=False)
    for (name, place), marker in shapes:
        look = {"markerfacecolor": "none", "markeredgecolor": "black", "markersize": 12, "linestyle": ""}
        handles += plane.plot(*place, marker=marker, label=name, zorder=7, **look)
    edge: dict[str, Any] = {"linestyle": "", "markeredgecolor": "black"}
    handles += [
        Line2D([], [], marker="o", markerfacecolor="white", label="initial state", **edge),
        Line2D([], [], marker="s", color="grey", label="last state", **edge),
    ]
    if any(np.isfinite(track.center).any() for track in tracks.ranks.values()):
        handles.append(Line2D([], [], color="grey", linewidth=0.8, label="exchange: sample to center"))
    first = next(iter(tracks.ranks))
    handles.append(
        Line2D([], [], linestyle="", marker="$12$", color="black", label=f"steps of all ranks, at rank {first}")
    )
    return handles


def _track(axis: Any, track: Track, colour: str, name: str) -> list[Any]:  # noqa: ANN401 (matplotlib's objects)
    from matplotlib.collections import LineCollection

    # A thin line per exchange, from the sample to the center that the rank read.
    exchanged = np.isfinite(track.center[:, 0])
    if exchanged.any():
        lines = np.stack([track.sample[exchanged], track.center[exchanged]], 1)
        axis.add_collection(LineCollection(list(lines), colors=colour, linewidths=0.5, alpha=0.6, zorder=4))
    handles: list[Any] = axis.plot(*track.sample.T, "-", color=colour, linewidth=1.2, label=name, zorder=5)
    if len(track.sample) <= MOST_MARKED:
        axis.plot(*track.sample.T, ".", color=colour, markersize=5, zorder=5)
    axis.plot(*track.sample[0], "o", color="white", markeredgecolor=colour, markersize=6, zorder=6)
    axis.plot(*track.sample[-1], "s", color=colour, markeredgecolor="black", markersize=5, zorder=6)
    return handles


def _panels(
    loss: Any,  # noqa: ANN401 (matplotlib's objects)
    off: Any,  # noqa: ANN401
    tracks: Tracks,
    logged: Mapping[int, tuple[NDArray[np.int64], NDArray[Any]]],
    losses: Mapping[int, Losses],
) -> None:
    drawn = []
    for i, (rank, track) in enumerate(tracks.ranks.items()):
        colour = COLOURS[i % 6]
        steps, values = logged.get(rank, (np.empty(0, np.int64), np.empty(0)))
        drawn.append(_running_mean(values))
        loss.plot(steps, drawn[-1], color=colour, linewidth=0.8, alpha=0.6)
        off.plot(track.total, track.off, color=colour, linewidth=1)
        if rank in losses:
            drawn += [losses[rank].true, losses[rank].plane]
            loss.plot(track.total, losses[rank].true, "o-", color=colour, markersize=3, linewidth=1)
            loss.plot(track.total, losses[rank].plane, "x--", color=colour, markersize=4, linewidth=0.8)
    for center in center_tracks(tracks):
        off.plot(center.total, center.off, color=CENTER, alpha=0.35, linewidth=3, zorder=1.5)
    for axis, label in ((loss, "loss"), (off, "distance from the plane")):
        axis.set(ylabel=label, xlabel="steps of all ranks")
        axis.locator_params(axis="x", nbins=5)
        axis.set_xlim(left=0)
    off.set_ylim(bottom=0)
    value_axis(loss, drawn, AUTOMATIC, log=True)


def _line_handles(*, with_losses: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color="grey", linewidth=0.8, label="mini-batches, running mean")]
    if with_losses:
        look: dict[str, Any] = {"color": "grey", "linewidth": 1}
        lines += [
            Line2D([], [], marker="o", markersize=3, label="at the samples", **look),
            Line2D([], [], marker="x", linestyle="--", markersize=4, label="at their projections", **look),
        ]
    return lines


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
