"""Draws figures again from the numbers that were written beside them; neither the run nor torch is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.chains.mcmc import Mixing
from lsam_hpc.landscape.chains.statistics import Chains, Quantity, RankHealth, Spread
from lsam_hpc.landscape.curvature.edge_of_stability import Edge, Limits
from lsam_hpc.landscape.curvature.smoothed_density import Density
from lsam_hpc.landscape.figures.draw_chains import draw_chains
from lsam_hpc.landscape.figures.draw_curvature import draw_edge, draw_layers, draw_sharpness, draw_spectra
from lsam_hpc.landscape.figures.draw_path import draw_matrix, draw_profiles
from lsam_hpc.landscape.figures.draw_space import draw_space
from lsam_hpc.landscape.figures.draw_surface import draw_surface
from lsam_hpc.landscape.figures.draw_tracks import Losses, draw_tracks
from lsam_hpc.landscape.figures.redrawn import REDRAWN
from lsam_hpc.landscape.figures.scales import Scale
from lsam_hpc.landscape.formats.loss_landscape import Surface
from lsam_hpc.landscape.geometry import columns as c
from lsam_hpc.landscape.geometry.barriers import DOUBLE, Matrix, Profile
from lsam_hpc.landscape.geometry.tracks import Track, Tracks
from lsam_hpc.landscape.report.tables import numbers_of
from lsam_hpc.trajectory.openfile import DAMAGE, opened

WHOLE = "all"  # the whole matrix, among the layers of a spectrum
LIMITS = {"surface", "trajectory", "path", "spectrum", "edge", "sharpness"}  # kinds with --limits and --log
LEVELS = {"surface", "trajectory"}  # kinds with --levels
UNREADABLE = "expected the numbers of a figure of this version"


@dataclass(frozen=True)
class Stored:
    """The numbers of a figure.

    Args:
        path: of their file.
        kind: of the figure, as surface or compare-predict.
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
        layers = bool(self.notes["layers"]) and any(
            name.endswith(("/eigenvalues", "/trace")) and f"/{WHOLE}/" not in name for name in self.arrays
        )
        return [""] * whole + ["-layers"] * layers


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
    if not isinstance(figure, dict) or figure.get("kind") not in _DRAW:
        raise InputError(
            f"{path}: {UNREADABLE}, found none: figures of {', '.join(_DRAW)} can be drawn again, if this version's "
            "program wrote them"
        )
    return Stored(path, figure["kind"], figure["title"], arrays, {**notes, **figure})


def redraw(stored: Stored, out: Mapping[str, Path], scale: Scale, *, space: bool = False) -> None:
    """Draw a figure from its numbers.

    Args:
        stored: the numbers.
        out: paths of the figures, by the suffix of their names, see `Stored.suffixes`.
        scale: of the values.
        space: whether to draw a surface in three dimensions.

    Raises:
        InputError: an option has no meaning for this kind of figure, or a number that it needs is missing.
    """
    asked = {
        "levels": (scale.levels is not None, LEVELS),
        "limits": (scale.limits is not None, LIMITS),
        "log": (scale.logarithmic is not None, LIMITS),
        "static-3d": (space, {"surface"}),
    }
    background = stored.kind != "trajectory" or "surface/loss" in stored.arrays
    for option, (given, kinds) in asked.items():
        if given and (stored.kind not in kinds or not background):
            have = f"the numbers of a figure of the kind {stored.kind}" if background else "tracks without --surface"
            raise InputError(f"--{option}: expected a figure of {', '.join(sorted(kinds))}, found {have}")
    try:
        (_space if space else _DRAW[stored.kind])(stored, out, scale)
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise InputError(f"{stored.path}: {UNREADABLE}, found them incomplete: {error}") from error


def _surface(stored: Stored) -> tuple[Surface, dict[str, Any]]:
    arrays, prefix = stored.arrays, f"{stored.notes['prefix']}_"
    x, y = arrays["xcoordinates"], arrays.get("ycoordinates")
    values = {n.removeprefix(prefix): np.where(v == -1, np.nan, v) for n, v in arrays.items() if n.startswith(prefix)}
    if "acc" in values:
        values[c.ERROR] = 100 - values.pop("acc")
    marks = {name: np.array(place) for name, place in stored.notes["marks"].items()}
    return Surface(x, y, values), {"labels": stored.notes["labels"], "marks": marks, "title": stored.title}


def _draw_surface(stored: Stored, out: Mapping[str, Path], scale: Scale) -> None:
    surface, how = _surface(stored)
    draw_surface(surface, out[""], **how, scale=scale)


def _space(stored: Stored, out: Mapping[str, Path], scale: Scale) -> None:
    surface, how = _surface(stored)
    draw_space(surface, out[""], **how, scale=scale)


def _trajectory(stored: Stored, out: Mapping[str, Path], scale: Scale) -> None:
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
    draw_tracks(tracks, out[""], logged, losses, background, title=stored.title, scale=scale)


def _path(stored: Stored, out: Mapping[str, Path], scale: Scale) -> None:
    a, notes = stored.arrays, stored.notes
    epsilon = float(np.finfo(np.float32).eps) if notes["dtype"] == "torch.float32" else DOUBLE
    if "names" in a:
        matrix = Matrix(tuple(a["names"]), a["t"], a["loss"], a["error"], epsilon)
        draw_matrix(matrix, out[""], stored.title, scale=scale)
        return
    short = {label: label.split()[0].lower() for label in notes["paths"]}
    profiles = {n: Profile(a["t"], a[f"{s}_loss"], a[f"{s}_error"], epsilon) for n, s in short.items()}
    first, second = notes["states"]
    draw_profiles(profiles, out[""], (first, second), stored.title, scale=scale)


def _spectrum(stored: Stored, out: Mapping[str, Path], scale: Scale) -> None:
    a = stored.arrays
    blocks = list(dict.fromkeys(tuple(name.split("/")[:2]) for name in a))
    matrices = stored.notes["matrices"]
    if "" in out:
        whole = {}
        for matrix in matrices:
            at = f"{matrix}/{WHOLE}"
            density = Density(a[f"{at}/density/nodes"], a[f"{at}/density/weights"])
            whole[matrix] = a.get(f"{at}/eigenvalues", np.empty(0)), density
        draw_spectra(whole, out[""], stored.title, scale=scale)
    if "-layers" in out:
        layers = [name for name in stored.notes["layers"] if (matrices[0], name) in blocks]
        each = {m: [f"{m}/{layer}" for layer in layers] for m in matrices}
        tops = {
            m: np.array([a[f"{at}/eigenvalues"][0] for at in ats if f"{at}/eigenvalues" in a])
            for m, ats in each.items()
        }
        means = {
            m: np.array([a[f"{at}/trace"] / a[f"{at}/parameters"] for at in ats if f"{at}/trace" in a])
            for m, ats in each.items()
        }
        draw_layers(layers, tops, means, out["-layers"], stored.title)


def _edge(stored: Stored, out: Mapping[str, Path], scale: Scale) -> None:
    a, momentum = stored.arrays, float(stored.notes["momentum"])
    limits = ("total_iteration", "lr", "ratio")
    own = ("rank", "iteration", "sharpness", "update_sharpness", "gradient_sharpness", "flow_sharpness")
    logged = Limits(**{name: a[f"logged/{name}"] for name in limits}, momentum=momentum)

    def series(group: str) -> Edge:
        return Edge(**{name: a[f"{group}{name}"] for name in (*limits, *own)}, momentum=momentum, logged=logged)

    measured = series("measured/") if "measured/rank" in a else None
    draw_edge(series(""), out[""], stored.title, measured, scale=scale)


def _sharpness(stored: Stored, out: Mapping[str, Path], scale: Scale) -> None:
    a = stored.arrays
    panels: dict[str, dict[str, Any]] = {}
    for i, (panel, state) in enumerate(zip(stored.notes["panels"], a["state"], strict=True)):
        row = a["rho"][i], a["sharpness"][i], a["standard_error"][i]
        panels.setdefault(panel, {}).setdefault(state, []).append(row)
    drawn = {
        panel: {state: tuple(np.array(rows, float).T) for state, rows in states.items()}
        for panel, states in panels.items()
    }
    draw_sharpness(drawn, out[""], stored.title, scale=scale)


def _diagnose(stored: Stored, out: Mapping[str, Path], _: Scale) -> None:
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
    chains = Chains(ranks=ranks, used=notes["chains"], start=notes["from"], quantities=quantities, **how)
    draw_chains(chains, out[""], stored.title)


def _redrawn(kind: str) -> Callable[[Stored, Mapping[str, Path], Scale], None]:
    def draw(stored: Stored, out: Mapping[str, Path], _: Scale) -> None:
        REDRAWN[kind](stored.arrays, stored.notes, stored.title, out[""])

    return draw


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


_DRAW: dict[str, Callable[[Stored, Mapping[str, Path], Scale], None]] = {
    "surface": _draw_surface,
    "trajectory": _trajectory,
    "path": _path,
    "spectrum": _spectrum,
    "edge": _edge,
    "sharpness": _sharpness,
    "diagnose": _diagnose,
    **{kind: _redrawn(kind) for kind in REDRAWN},
}
