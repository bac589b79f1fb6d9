"""The numbers of a figure, as they were written beside it; neither the run nor torch is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.chains.mcmc import Mixing
from lsam_hpc.landscape.chains.statistics import Chains, Quantity, RankHealth, Spread
from lsam_hpc.landscape.curvature.edge_of_stability import Edge, Limits
from lsam_hpc.landscape.curvature.results import WHOLE, Spectrum, Trace
from lsam_hpc.landscape.curvature.smoothed_density import Density
from lsam_hpc.landscape.figures.draw_tracks import Losses
from lsam_hpc.landscape.formats.loss_landscape import Surface
from lsam_hpc.landscape.geometry import columns as c
from lsam_hpc.landscape.geometry.barriers import DOUBLE, Matrix, Profile
from lsam_hpc.landscape.geometry.tracks import Track, Tracks
from lsam_hpc.landscape.report.tables import numbers_of
from lsam_hpc.trajectory.openfile import DAMAGE, opened

CLASS = "class "  # what the names of classes among the blocks of a spectrum begin with
COMPARISON = "comparison"
KINDS = (
    *("surface", "trajectory", "path", "spectrum", "edge", "sharpness", "diagnose"),
    *("basins", "outliers", "predict", "learning-coefficient", COMPARISON),
)
UNREADABLE = "expected the numbers of a figure of this version"


@dataclass(frozen=True)
class Stored:
    """The numbers of a figure.

    Args:
        path: of their file.
        kind: of the figure, one of `KINDS`.
        title: of the figure.
        arrays: by name; texts are lists.
        notes: how they were made.
    """

    path: Path
    kind: str
    title: str
    arrays: Mapping[str, Any]
    notes: Mapping[str, Any]

    @property
    def suffixes(self) -> list[str]:
        """What the names of the figures add to the name of the file."""
        if self.kind != "spectrum":
            return [""]
        whole = any(name.endswith(f"/{WHOLE}/density/nodes") for name in self.arrays)
        of = {kind: [name for name in self.arrays if name.endswith(kind)] for kind in ("/eigenvalues", "/trace")}
        ends = [name for name in self.arrays if name.endswith(("/eigenvalues", "/smallest", "/density/nodes"))]
        classes = any(f"/{CLASS}" in name for name in ends)
        layers = any(name.split("/")[1] in self.notes["layers"] for names in of.values() for name in names)
        return [""] * whole + ["-classes"] * classes + ["-layers"] * layers


def read(path: Path) -> Stored:
    """Read the numbers of a figure.

    Raises:
        InputError: there is no file, it cannot be read, or it has no numbers of a figure.
    """
    if not path.is_file():
        raise InputError(f"{path}: expected the .h5 file beside a figure, found none: lsam surface RUN writes one")
    try:
        with opened(path) as (file, _):
            arrays, notes = numbers_of(file)
    except DAMAGE as error:
        raise InputError(
            f"{path}: expected the .h5 file beside a figure, found: {str(error).splitlines()[0]}"
        ) from error
    figure = notes.get("figure")
    if not isinstance(figure, dict) or figure.get("kind") not in KINDS:
        raise InputError(
            f"{path}: {UNREADABLE}, found none: figures of {', '.join(KINDS)} can be drawn again, if this version's "
            "program wrote them"
        )
    return Stored(path, figure["kind"], figure["title"], arrays, {**notes, **figure})


class Drawn(NamedTuple):
    """What a figure of tracks shows, see `draw_tracks`."""

    tracks: Tracks
    logged: dict[int, tuple[Any, Any]]
    losses: dict[int, Losses]
    background: Surface | None


def surface_of(stored: Stored) -> Surface:
    """Return the values of a surface."""
    arrays, prefix = stored.arrays, f"{stored.notes['prefix']}_"
    x, y = arrays["xcoordinates"], arrays.get("ycoordinates")
    values = {n.removeprefix(prefix): np.where(v == -1, np.nan, v) for n, v in arrays.items() if n.startswith(prefix)}
    if "acc" in values:
        values[c.ERROR] = 100 - values.pop("acc")
    return Surface(x, y, values)


def tracks_of(stored: Stored) -> Drawn:
    """Return tracks, the loss along them and on their plane."""
    a, notes = stored.arrays, stored.notes
    ranks, losses, logged = {}, {}, {}
    for rank in np.unique(a["rank"]).tolist():
        of = a["rank"] == rank
        at = {name: a[name][of] for name in a if len(np.shape(a[name])) and len(a[name]) == len(of)}
        sample, center = (np.stack([at[f"{state}x"], at[f"{state}y"]], 1) for state in ("", "center_"))
        columns = (at["iteration"], at["total_iteration"], at["center_version"], sample, at["off_plane"], center)
        ranks[rank] = Track(*columns, at["center_off_plane"])
        if "loss" in at:
            losses[rank] = Losses(at["loss"], at["plane_loss"])
        steps = a["logged/rank"] == rank
        logged[rank] = a["logged/total_iteration"][steps], a["logged/loss"][steps]
    marks = dict(zip(a.get("marks", []), a["marks_at"], strict=True))
    explained = None if notes["explained"] is None else np.array(notes["explained"])
    tracks = Tracks(notes["source"], ranks, tuple(notes["labels"]), explained, None, {}, marks, {}, notes["one_center"])
    background = None
    if "surface/loss" in a:
        background = Surface(a["surface/x"], a["surface/y"], {c.LOSS: a["surface/loss"]})
    return Drawn(tracks, logged, losses, background)


def matrix_of(stored: Stored) -> Matrix:
    """Return the losses on the lines between all pairs of states."""
    a = stored.arrays
    return Matrix(tuple(a["names"]), a["t"], a["loss"], a["error"], _epsilon(stored))


def profiles_of(stored: Stored) -> dict[str, Profile]:
    """Return the losses on paths between two states, by the label of the path."""
    a = stored.arrays
    short = {label: label.split()[0].lower() for label in stored.notes["paths"]}
    return {n: Profile(a["t"], a[f"{s}_loss"], a[f"{s}_error"], _epsilon(stored)) for n, s in short.items()}


def spectra_of(stored: Stored) -> dict[tuple[str, str], Spectrum]:
    """Return the spectra by matrix and by layer or class, the whole matrices first; without eigenvectors."""
    a = stored.arrays
    spectra = {}
    for matrix in stored.notes["matrices"]:
        names = dict.fromkeys(name.split("/")[1] for name in a if name.startswith(f"{matrix}/"))
        order = [WHOLE, *(n for n in names if n.startswith(CLASS)), *stored.notes["layers"]]
        for name in (name for name in order if name in names):
            at = f"{matrix}/{name}"
            density = f"{at}/density/nodes" in a and Density(a[f"{at}/density/nodes"], a[f"{at}/density/weights"])
            trace = Trace(float(a[f"{at}/trace"]), float(a[f"{at}/trace_error"])) if f"{at}/trace" in a else None
            values, smallest = (a.get(f"{at}/{end}", np.empty(0)) for end in ("eigenvalues", "smallest"))
            spectra[matrix, name] = Spectrum(values, np.empty((0, 0), np.float32), trace, density or None, smallest)
    return spectra


def sizes_of(stored: Stored) -> dict[tuple[str, str], int]:
    """Return the number of parameters of each block, by matrix and by layer or class."""
    ends = {name: name.split("/") for name in stored.arrays if name.endswith("/parameters")}
    return {(matrix, name): int(stored.arrays[at]) for at, (matrix, name, _) in ends.items()}


def edge_of(stored: Stored) -> tuple[Edge, Edge | None]:
    """Return the sharpness of snapshots, and that measured in training if it was stored."""
    a, momentum = stored.arrays, float(stored.notes["momentum"])
    limits = ("total_iteration", "lr", "ratio")
    own = ("rank", "iteration", "sharpness", "update_sharpness", "gradient_sharpness", "flow_sharpness")
    logged = Limits(**{name: a[f"logged/{name}"] for name in limits}, momentum=momentum)

    def series(group: str) -> Edge:
        return Edge(**{name: a[f"{group}{name}"] for name in (*limits, *own)}, momentum=momentum, logged=logged)

    return series(""), series("measured/") if "measured/rank" in a else None


def sharpness_of(stored: Stored) -> dict[str, dict[str, Any]]:
    """Return panels of sharpness by state: radii, values, standard errors."""
    a = stored.arrays
    panels: dict[str, dict[str, Any]] = {}
    for i, (panel, state) in enumerate(zip(stored.notes["panels"], a["state"], strict=True)):
        row = a["rho"][i], a["sharpness"][i], a["standard_error"][i]
        panels.setdefault(panel, {}).setdefault(state, []).append(row)
    return {
        panel: {state: tuple(np.array(rows, float).T) for state, rows in states.items()}
        for panel, states in panels.items()
    }


def chains_of(stored: Stored) -> Chains:
    """Return the statistics of a run's chains."""
    a, notes = stored.arrays, stored.notes
    quantities = []
    for name, numbers in notes["quantities"].items():
        mixing = Mixing(**{field: _number(numbers[field]) for field in Mixing._fields})
        quantities.append(Quantity(name, a[f"draws/{name}"], numbers["spacing"], mixing))
    spread = notes["spread"]
    if spread is not None:
        measured, stiffness, temperature = (_number(spread[n]) for n in ("measured", "stiffness", "temperature"))
        spread = Spread(measured, stiffness, temperature, spread["size"])
    ranks = [RankHealth(**{**rank, "rate": _number(rank["rate"])}) for rank in notes["ranks"]]
    how: dict[str, Any] = {"explained": a["explained"], "spread": spread, "options": {}}
    how |= {"staleness": a["staleness"], "waits": a["waits"]}
    return Chains(ranks=ranks, used=notes["chains"], start=notes["from"], quantities=quantities, **how)


def joined(parts: Sequence[Stored]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the numbers of several figures as arrays of one file and notes; `parts_of` returns them again."""
    arrays = {f"{i}/{name}": values for i, part in enumerate(parts) for name, values in part.arrays.items()}
    return arrays, [{"kind": part.kind, "title": part.title, "notes": dict(part.notes)} for part in parts]


def parts_of(stored: Stored) -> list[Stored]:
    """Return the numbers of the figures that a comparison was made of."""
    parts = []
    for i, of_part in enumerate(stored.notes["parts"]):
        arrays = {n.partition("/")[2]: values for n, values in stored.arrays.items() if n.startswith(f"{i}/")}
        parts.append(Stored(stored.path, of_part["kind"], of_part["title"], arrays, of_part["notes"]))
    return parts


def _epsilon(stored: Stored) -> float:
    return float(np.finfo(np.float32).eps) if stored.notes["dtype"] == "torch.float32" else DOUBLE


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
