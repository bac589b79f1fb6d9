"""Surfaces on the plane of a run's tracks that an earlier program stored, so that they are not computed again."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.chains.statistics import Chains
from lsam_hpc.landscape.figures.draw_tracks import Losses
from lsam_hpc.landscape.formats.loss_landscape import Surface
from lsam_hpc.landscape.geometry.surface import LOSS
from lsam_hpc.landscape.geometry.tracks import Tracks
from lsam_hpc.landscape.report.tables import NOTES, numbers_of, write_arrays
from lsam_hpc.trajectory.openfile import DAMAGE, opened

OBJECTIVE = "objective"  # among the notes: model, data, split, ... of the losses
SAME_STATES = 1e-4  # largest difference of coordinates, as a share of the tracks' extent
ROUNDING = 1e-2  # relative difference of losses of one point that another machine or number of threads may make
_STATES = ("rank", "iteration", "x", "y", "off_plane")
_ANYHOW = ("device", "threads", "batches")  # of the notes: they change the losses by rounding only


@dataclass(frozen=True)
class Stored:
    """A stored surface on the plane of the tracks.

    Args:
        path: of the file.
        surface: the loss.
        notes: what it was computed from, see `ranks.objective_options`.
        losses: losses along the tracks, by rank; None if the file has none.
    """

    path: Path
    surface: Surface
    notes: Mapping[str, Any]
    losses: dict[int, Losses] | None

    def same(self, notes: Mapping[str, Any]) -> bool:
        """Return whether the losses are of this model, these data and this precision."""
        names = {*self.notes, *notes} - {*_ANYHOW}
        return all(self.notes.get(name) == notes.get(name) for name in names)

    def same_loss(self, loss: float) -> bool:
        """Return whether the loss at `middle`, computed now, is the stored one."""
        j, i = (n // 2 for n in self.surface.shape)
        old = float(self.surface.values[LOSS][j, i])
        return math.isclose(loss, old, rel_tol=ROUNDING, abs_tol=1e-6) or (math.isnan(loss) and math.isnan(old))

    @property
    def middle(self) -> NDArray[np.float64]:
        """Coordinates of the grid's middle point, shape (2,)."""
        assert self.surface.y is not None
        return np.array([axis[len(axis) // 2] for axis in (self.surface.x, self.surface.y)])


def find(path: Path, tracks: Tracks, points: int | None = None) -> Stored | None:
    """Return a file's surface; None if it has none that covers these tracks, or does not say of what it is.

    Args:
        path: of an HDF5 file.
        tracks: their states must be those of the file, at the same coordinates.
        points: number of points along each axis. Default: any.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with opened(path) as (file, _):
            if NOTES not in file.attrs or f"surface/{LOSS}" not in file or not _same_states(file, tracks):
                return None
            notes = json.loads(str(file.attrs[NOTES])).get(OBJECTIVE)
            if notes is None:
                return None
            surface = Surface(file["surface/x"][()], file["surface/y"][()], {LOSS: file[f"surface/{LOSS}"][()]})
            losses = _losses(file, tracks)
    except DAMAGE as error:
        words = " ".join(str(error).split())
        raise InputError(f"{path}: expected a readable HDF5 file, found: {words}") from error
    if points is not None and surface.shape != (points, points):
        return None
    return Stored(path, surface, notes, losses) if _covers(surface, tracks) else None


def shows_tracks(
    path: Path, tracks: Tracks, background: Surface | None, losses: Mapping[int, Losses] | None, split: str | None
) -> bool:
    """Return whether a figure of these tracks shows all that the figure beside an HDF5 file does; False if damaged.

    Args:
        path: of the file.
        tracks: that are drawn, with their marks.
        background: the loss on the plane that is drawn.
        losses: along the tracks that are drawn.
        split: of the data of the losses; None: of other data.
    """
    try:
        with opened(path) as (file, _):
            arrays, notes = numbers_of(file)
            if not _same_states(file, tracks):
                return False
    except (InputError, *DAMAGE):
        return False
    now: dict[str, Any] = {
        "center_x": np.concatenate([track.center[:, 0] for track in tracks.ranks.values()]),
        "center_y": np.concatenate([track.center[:, 1] for track in tracks.ranks.values()]),
        "marks_at": np.array([*tracks.marks.values()]).reshape(-1, 2),
    }
    if losses is not None:
        now["loss"] = np.concatenate([losses[rank].true for rank in tracks.ranks])
        now["plane_loss"] = np.concatenate([losses[rank].plane for rank in tracks.ranks])
    if background is not None:
        now |= {"surface/x": background.x, "surface/y": background.y, "surface/loss": background.values[LOSS]}
    drawn = {"center_x", "center_y", "marks_at", "loss", "plane_loss", "surface/x", "surface/y", "surface/loss"}
    of_losses = notes.get(OBJECTIVE) or {"split": split}
    return (
        notes.get("source") == tracks.source
        and list(notes.get("labels", [])) == list(tracks.labels)
        and list(arrays.get("marks", [])) == list(tracks.marks)
        and of_losses.get("split") == split
        and all(name in now and _close(arrays[name], now[name]) for name in drawn & arrays.keys())
    )


def shows_chains(path: Path, statistics: Chains) -> bool:
    """Return whether a figure of these chains is the one beside an HDF5 file; False if that is damaged."""
    try:
        with opened(path) as (file, _):
            arrays, notes = numbers_of(file)
    except (InputError, *DAMAGE):
        return False
    drawn = {name: values for name, values in arrays.items() if name.startswith("draws/")}
    now = {f"draws/{quantity.name}": quantity.draws for quantity in statistics.quantities}
    more = {"staleness": statistics.staleness, "waits": statistics.waits}
    return (
        notes.get("from") == statistics.start
        and list(drawn) == sorted(now)
        and all(_close(arrays.get(name, np.empty(0)), values) for name, values in {**now, **more}.items())
    )


def _close(stored: NDArray[Any], now: NDArray[Any]) -> bool:
    if np.shape(stored) != np.shape(now):
        return False
    unit = float(np.nanmax(np.abs(now), initial=0.0)) or 1.0
    return np.allclose(stored, now, rtol=0, atol=SAME_STATES * unit, equal_nan=True)


def write(path: Path, tracks: Tracks, surface: Surface, notes: Mapping[str, Any]) -> None:
    """Write a surface on the plane of the tracks such that `find` finds it."""
    arrays = {**_states(tracks), "surface/x": surface.x, "surface/y": surface.y, "surface/loss": surface.values[LOSS]}
    write_arrays(path, arrays, {"source": tracks.source, "labels": tracks.labels, OBJECTIVE: dict(notes)})


def _states(tracks: Tracks) -> dict[str, NDArray[Any]]:
    """Return rank, number of steps, coordinates and distance from the plane of each state, in the order of ranks."""
    each = tracks.ranks.items()
    sample = np.concatenate([track.sample for _, track in each])
    return {
        "rank": np.concatenate([np.full(len(track.iteration), rank) for rank, track in each]),
        "iteration": np.concatenate([track.iteration for _, track in each]),
        "x": sample[:, 0],
        "y": sample[:, 1],
        "off_plane": np.concatenate([track.off for _, track in each]),
    }


def _same_states(file: h5py.File, tracks: Tracks) -> bool:
    if any(name not in file for name in _STATES):
        return False
    stored, now = {name: file[name][()] for name in _STATES}, _states(tracks)
    if any(stored[name].shape != now[name].shape for name in _STATES):
        return False
    unit = float(max(np.ptp(now["x"]), np.ptp(now["y"]))) or 1.0
    whole = all(np.array_equal(stored[name], now[name]) for name in ("rank", "iteration"))
    return whole and all(
        np.allclose(stored[name], now[name], rtol=0, atol=SAME_STATES * unit) for name in ("x", "y", "off_plane")
    )


def _covers(surface: Surface, tracks: Tracks) -> bool:
    places = np.concatenate([part for track in tracks.ranks.values() for part in (track.sample, track.center)])
    places = places[np.isfinite(places[:, 0])]
    assert surface.y is not None
    return all(
        axis[0] <= places[:, i].min() and places[:, i].max() <= axis[-1]
        for i, axis in enumerate((surface.x, surface.y))
    )


def _losses(file: h5py.File, tracks: Tracks) -> dict[int, Losses] | None:
    if "loss" not in file or "plane_loss" not in file:
        return None
    ends = np.cumsum([len(track.iteration) for track in tracks.ranks.values()])[:-1]
    parts = zip(*(np.split(file[name][()], ends) for name in ("loss", "plane_loss")), strict=True)
    return {rank: Losses(*pair) for rank, pair in zip(tracks.ranks, parts, strict=True)}
