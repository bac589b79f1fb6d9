"""Draws figures again from the numbers that were written beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.compare.kinds import compare
from lsam_hpc.landscape.curvature.results import WHOLE
from lsam_hpc.landscape.figures.draw_basins import draw_basins, flooded_of
from lsam_hpc.landscape.figures.draw_chains import draw_chains
from lsam_hpc.landscape.figures.draw_classes import draw_classes
from lsam_hpc.landscape.figures.draw_curvature import draw_edge, draw_layers, draw_sharpness, draw_spectra
from lsam_hpc.landscape.figures.draw_learning_coefficient import draw_learning_coefficients, estimates_of
from lsam_hpc.landscape.figures.draw_outliers import draw_outliers, outliers_of
from lsam_hpc.landscape.figures.draw_path import draw_matrix, draw_profiles
from lsam_hpc.landscape.figures.draw_reliability import draw_reliability, panels_of
from lsam_hpc.landscape.figures.draw_space import draw_space
from lsam_hpc.landscape.figures.draw_surface import draw_surface
from lsam_hpc.landscape.figures.draw_tracks import draw_tracks
from lsam_hpc.landscape.figures.scales import Scale
from lsam_hpc.landscape.figures.stored import (
    CLASS,
    COMPARISON,
    UNREADABLE,
    Stored,
    chains_of,
    edge_of,
    matrix_of,
    profiles_of,
    sharpness_of,
    sizes_of,
    spectra_of,
    surface_of,
    tracks_of,
)

LIMITS = {"surface", "trajectory", "path", "spectrum", "edge", "sharpness"}  # kinds with --limits and --log
LEVELS = {"surface", "trajectory"}  # kinds with --levels


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


def _surface(stored: Stored, out: Mapping[str, Path], scale: Scale) -> None:
    marks = {name: np.array(place) for name, place in stored.notes["marks"].items()}
    draw_surface(surface_of(stored), out[""], stored.notes["labels"], marks, stored.title, scale=scale)


def _space(stored: Stored, out: Mapping[str, Path], scale: Scale) -> None:
    marks = {name: np.array(place) for name, place in stored.notes["marks"].items()}
    draw_space(surface_of(stored), out[""], stored.notes["labels"], marks, stored.title, scale=scale)


def _trajectory(stored: Stored, out: Mapping[str, Path], scale: Scale) -> None:
    tracks, logged, losses, background = tracks_of(stored)
    draw_tracks(tracks, out[""], logged, losses, background, title=stored.title, scale=scale)


def _path(stored: Stored, out: Mapping[str, Path], scale: Scale) -> None:
    if "names" in stored.arrays:
        draw_matrix(matrix_of(stored), out[""], stored.title, scale=scale)
    else:
        first, second = stored.notes["states"]
        draw_profiles(profiles_of(stored), out[""], (first, second), stored.title, scale=scale)


def _spectrum(stored: Stored, out: Mapping[str, Path], scale: Scale) -> None:
    spectra, matrices, layers = spectra_of(stored), stored.notes["matrices"], stored.notes["layers"]
    if "" in out:
        whole = {m: spectra[m, WHOLE] for m in matrices}
        draw_spectra(
            {m: (s.values, s.density) for m, s in whole.items() if s.density}, out[""], stored.title, scale=scale
        )
    if "-classes" in out:
        of_classes = [(m, n.removeprefix(CLASS), s) for (m, n), s in spectra.items() if n.startswith(CLASS)]
        draw_classes(of_classes, out["-classes"], stored.title)
    if "-layers" in out:
        sizes = sizes_of(stored)
        each = {m: [(spectra[m, name], sizes[m, name]) for name in layers] for m in matrices}
        tops = {m: np.array([s.values[0] for s, _ in inner if len(s.values)]) for m, inner in each.items()}
        means = {m: np.array([s.trace.value / size for s, size in inner if s.trace]) for m, inner in each.items()}
        draw_layers(layers, tops, means, out["-layers"], stored.title)


def _edge(stored: Stored, out: Mapping[str, Path], scale: Scale) -> None:
    edge, measured = edge_of(stored)
    draw_edge(edge, out[""], stored.title, measured, scale=scale)


def _sharpness(stored: Stored, out: Mapping[str, Path], scale: Scale) -> None:
    draw_sharpness(sharpness_of(stored), out[""], stored.title, scale=scale)


def _outliers(stored: Stored, out: Mapping[str, Path], _: Scale) -> None:
    first, second = stored.notes["between"]
    shown = {"images": stored.arrays["images"], "classes": stored.notes["classes"]}
    draw_outliers(outliers_of(stored.arrays), out[""], (first, second), title=stored.title, **shown)


_DRAW: dict[str, Callable[[Stored, Mapping[str, Path], Scale], object]] = {
    "surface": _surface,
    "trajectory": _trajectory,
    "path": _path,
    "spectrum": _spectrum,
    "edge": _edge,
    "sharpness": _sharpness,
    "diagnose": lambda s, out, _: draw_chains(chains_of(s), out[""], s.title),
    "basins": lambda s, out, _: draw_basins(flooded_of(s.arrays, s.notes["labels"]), out[""], s.title),
    "outliers": _outliers,
    "predict": lambda s, out, _: draw_reliability(panels_of(s.arrays), out[""], s.title),
    "learning-coefficient": lambda s, out, _: draw_learning_coefficients(
        estimates_of(s.arrays, s.notes), out[""], s.title
    ),
    COMPARISON: lambda s, out, _: compare(s).draw(out[""]),
}
