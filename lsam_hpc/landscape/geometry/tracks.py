"""Coordinates of samples and center on a plane over training, from snapshots or from sketches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.geometry.axes import Axes, ranges
from lsam_hpc.landscape.geometry.projection import MIN_RATIO, plane, signs
from lsam_hpc.trajectory import Run
from lsam_hpc.trajectory.rows import Columns

SOURCES = ("snapshots", "sketches")
MOST_SKETCHES = 2000  # per rank and state; if there are more, evenly spaced ones are used


@dataclass(frozen=True)
class Track:
    """A rank's samples over training, and the center as the rank read it at the same exchanges.

    Args:
        iteration: number of the rank's steps before each state, shape (states,).
        total: number of all ranks' steps before each state.
        version: of the center, which is the number of updates that it holds, shape (states,); -1: not known.
        sample: coordinates of the rank's sample, shape (states, 2).
        off: distances of the sample from the plane, shape (states,).
        center: coordinates of the center, shape (states, 2); NaN where it was not logged.
        center_off: distances of the center from the plane, shape (states,).
    """

    iteration: NDArray[np.int64]
    total: NDArray[np.int64]
    version: NDArray[np.int64]
    sample: NDArray[np.float64]
    off: NDArray[np.float64]
    center: NDArray[np.float64]
    center_off: NDArray[np.float64]


@dataclass(frozen=True)
class CenterTrack:
    """A center over training, as ranks read it, in the order of its versions.

    Args:
        version: see `Track`, shape (reads,).
        total: number of all ranks' steps by which the center had this version, shape (reads,); never decreases.
        at: coordinates, shape (reads, 2).
        off: distances from the plane, shape (reads,).
    """

    version: NDArray[np.int64]
    total: NDArray[np.int64]
    at: NDArray[np.float64]
    off: NDArray[np.float64]


@dataclass(frozen=True)
class Tracks:
    """All ranks' tracks on a plane.

    Args:
        source: one of `SOURCES`.
        ranks: the track of each rank.
        labels: of the axes.
        explained: share of the variance that each of the two directions explains; None for a chosen plane.
        axes: the plane in parameter space; None for tracks from sketches.
        rows: each rank's row numbers in its table of samples.
        marks: coordinates of further states, by name.
        marks_off: distances of those states from the plane, by name.
        one_center: True if all ranks share one center; False if each has its own, as with gossip. Default: True.
    """

    source: str
    ranks: dict[int, Track]
    labels: tuple[str, ...]
    explained: NDArray[np.float64] | None
    axes: Axes | None
    rows: dict[int, list[int]]
    marks: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    marks_off: Mapping[str, float] = field(default_factory=dict)
    one_center: bool = True


def from_snapshots(run: Run, axes: Axes | None = None, marks: Mapping[str, NDArray[Any]] | None = None) -> Tracks:
    """Return tracks from snapshots, on the plane of the samples' principal components or on a given plane.

    Args:
        run: with snapshots of the samples.
        axes: a plane with orthogonal directions. Default: `projection.plane` of the samples.
        marks: further states, such as checkpoints, by name, shape (P,) each.

    Raises:
        InputError: there are no snapshots, or fewer than three to fit a plane.
    """
    if axes is None:
        fitted = plane(run)
        axes = Axes(fitted.origin, fitted.directions, principal(fitted.explained), {}, fitted.explained)
    table = "snapshot/sample"
    rows = {rank: run.log(rank).whole(table) for rank in run.ranks if table in run.log(rank).tables}
    rows = {rank: kept for rank, kept in rows.items() if kept}
    if not rows:
        raise InputError(f"{run.path}: expected snapshots of the samples, found none: train with --snapshot-every log")
    tracks = {}
    for rank, kept in rows.items():
        columns = run.snapshots(rank)
        sample, off = _project(run, rank, "sample", kept, axes)
        center, center_off = np.full((len(kept), 2), np.nan), np.full(len(kept), np.nan)
        center_rows = _rows_at(run, rank, "snapshot/center", columns["iteration"][kept])
        logged = center_rows >= 0
        center[logged], center_off[logged] = _project(run, rank, "center", center_rows[logged].tolist(), axes)
        tracks[rank] = _track(run, rank, columns, kept, sample, off, center, center_off)
    at, far = _marked({name: axes.coordinates(np.asarray(vector)[None]) for name, vector in (marks or {}).items()})
    at, far = {**axes.marks, **at}, {**dict.fromkeys(axes.marks, 0.0), **far}
    return Tracks("snapshots", tracks, axes.labels, axes.explained, axes, rows, at, far, _one_center(run))


def from_sketches(run: Run, marks: Mapping[str, NDArray[Any]] | None = None) -> Tracks:
    """Return tracks from sketches, on the plane of the principal components of the samples' sketches.

    A sketch preserves inner products up to an error of about |a| |b| / sqrt(buckets). So the error of coordinates and
    distances from the plane is about 1 / sqrt(buckets) of the distances between states.

    Args:
        run: with sketches of the samples.
        marks: further states by name, shape (P,) each; they are sketched too.

    Raises:
        InputError: there are fewer than three sketches, they lie on a line, or one is not finite.
    """
    samples, rows, columns = {}, {}, {}
    for rank in run.ranks:
        if "sketch/sample" in run.log(rank).tables:
            table = run.sketch(rank)
            count = len(table["iteration"])
            kept = np.unique(np.linspace(0, count - 1, min(count, MOST_SKETCHES)).astype(int))
            if count:
                samples[rank], rows[rank] = table["values"][kept].astype(np.float64), kept.tolist()
                columns[rank] = {name: table[name] for name in ("iteration", "version")}
    total = sum(map(len, samples.values()))
    if total < 3:
        raise InputError(
            f"{run.path}: expected 3 sketches of the samples or more to lay a plane through, found "
            f"{total}: train with --sketch-every 1"
        )
    matrix = np.concatenate(list(samples.values()))
    if not np.isfinite(matrix).all():
        raise InputError(f"{run.path}: expected finite sketches, found NaN or infinite ones")
    origin = samples[max(samples)][-1]
    _, singular, directions = np.linalg.svd(matrix - matrix.mean(0), full_matrices=False)
    if len(singular) < 2 or singular[1] <= MIN_RATIO * singular[0]:
        raise InputError(f"{run.path}: expected sketches that span a plane, found all on a line")
    directions = directions[:2]
    directions *= signs([values @ directions.T for values in samples.values()])[:, None]
    explained = (singular**2 / (singular**2).sum())[:2]
    axes = Axes(origin, directions, principal(explained), {}, explained)
    tracks = {}
    for rank, values in samples.items():
        sample, off = axes.coordinates(values)
        center, center_off = np.full_like(sample, np.nan), np.full_like(off, np.nan)
        center_rows = _rows_at(run, rank, "sketch/center", columns[rank]["iteration"][rows[rank]])
        logged = center_rows >= 0
        if logged.any():
            center_sketches = run.sketch(rank, "center")["values"][center_rows[logged]]
            center[logged], center_off[logged] = axes.coordinates(center_sketches)
        tracks[rank] = _track(run, rank, columns[rank], rows[rank], sample, off, center, center_off)
    sketcher = run.sketcher
    vectors = {name: np.asarray(vector, np.float32) for name, vector in (marks or {}).items() if sketcher}
    sketched = {name: sketcher(vector).sum(0)[None] for name, vector in vectors.items() if sketcher}
    marked = _marked({name: axes.coordinates(vector) for name, vector in sketched.items()})
    return Tracks("sketches", tracks, axes.labels, explained, None, rows, *marked, _one_center(run))


def center_tracks(tracks: Tracks) -> list[CenterTrack]:
    """Return the center as all ranks read it, in the order of its versions; one track per rank if each has a center.

    Total steps do not order the center: a rank reads it some time after the step at which it staged its sample, and
    kernel and restart couplings log the center that was read at the exchange before.
    """
    ranks = list(tracks.ranks.values())
    parts = [ranks] if tracks.one_center else [[track] for track in ranks]
    centers = [_center(part) for part in parts]
    return [center for center in centers if len(center.version)]


def grid_around(tracks: Tracks, points: int) -> list[NDArray[np.float64]]:
    """Return coordinates along both axes that reach 15 % beyond all states and marks, shape (points,) each."""
    ranks = [at for track in tracks.ranks.values() for at in (track.sample, track.center)]
    at = np.concatenate([*ranks, *(place[None] for place in tracks.marks.values())])
    return ranges(at[np.isfinite(at[:, 0])], points, 0.15)


def principal(explained: NDArray[np.float64]) -> tuple[str, ...]:
    """Return axis labels for principal components."""
    shares = [f"{100 * share:.1f} % of variance" for share in explained]
    return tuple(f"principal component {i} (distance; {share})" for i, share in enumerate(shares, 1))


def _center(ranks: Sequence[Track]) -> CenterTrack:
    """Return the reads of a center in the order of its versions; one of unknown version follows the read before it."""
    version, total, off = (
        np.concatenate([getattr(t, name) for t in ranks]) for name in ("version", "total", "center_off")
    )
    at = np.concatenate([track.center for track in ranks])
    order = np.argsort(total, kind="stable")
    order = order[np.isfinite(at[order, 0])]
    version = version[order]
    by_version = np.argsort(np.where(version < 0, np.maximum.accumulate(version), version), kind="stable")
    version, order = version[by_version], order[by_version]
    # A version exists at the latest when a later one is read.
    reached = np.minimum.accumulate(total[order][::-1])[::-1]
    return CenterTrack(version, reached, at[order], off[order])


def _marked(
    places: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> tuple[dict[str, NDArray[np.float64]], dict[str, float]]:
    return {name: at[0] for name, (at, _) in places.items()}, {name: float(off[0]) for name, (_, off) in places.items()}


def _one_center(run: Run) -> bool:
    return bool(run.config.get("topology", "center") == "center")


def _project(
    run: Run, rank: int, state: str, rows: Sequence[int], axes: Axes
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return coordinates and distances of snapshots; one at a time is in memory."""
    at, off = np.empty((len(rows), 2)), np.empty(len(rows))
    for i, row in enumerate(rows):
        vector = run.snapshot(rank, row, state)
        if not np.isfinite(vector).all():
            raise InputError(f"{run.path}: expected finite snapshots of the {state}, found row {row} of rank {rank}")
        coordinates, distance = axes.coordinates(vector[None])
        at[i], off[i] = coordinates[0], distance[0]
    return at, off


def _rows_at(run: Run, rank: int, table: str, iterations: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return the row of a table for each iteration, -1 where there is none."""
    log = run.log(rank)
    if table not in log.tables:
        return np.full(len(iterations), -1)
    by_iteration = {int(iteration): row for row, iteration in enumerate(log.table(table)["iteration"])}
    return np.array([by_iteration.get(int(iteration), -1) for iteration in iterations], np.intp)


def _track(run: Run, rank: int, columns: Columns, rows: list[int], *coordinates: NDArray[np.float64]) -> Track:
    steps, iteration = run.steps(rank), columns["iteration"][rows]
    known = np.concatenate([steps["total_iteration"], steps["total_iteration"][-1:] + 1])
    at = np.clip(np.searchsorted(steps["iteration"], iteration), 0, max(len(known) - 1, 0))
    return Track(iteration, known[at] if len(known) else iteration, columns["version"][rows], *coordinates)
