"""The kinds of comparisons, and the numbers from which each can be drawn again without the runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lsam_hpc.landscape.compare.basins import compare_basins
from lsam_hpc.landscape.compare.chains import drawn_chains
from lsam_hpc.landscape.compare.comparison import Case, Comparison
from lsam_hpc.landscape.compare.learning_coefficients import compare_learning_coefficients
from lsam_hpc.landscape.compare.outliers import compare_outliers
from lsam_hpc.landscape.compare.paths import compare_matrices, compare_profiles
from lsam_hpc.landscape.compare.predictions import compare_predictions
from lsam_hpc.landscape.compare.sharpness import compare_sharpness
from lsam_hpc.landscape.compare.spectra import compare_edges, compare_spectra
from lsam_hpc.landscape.compare.surfaces import compare_surfaces
from lsam_hpc.landscape.compare.tracks import compare_tracks
from lsam_hpc.landscape.figures.stored import COMPARISON, Stored, joined, parts_of

KINDS: dict[str, Callable[[Sequence[Case], Sequence[Stored], Mapping[str, Any]], Comparison]] = {
    "surfaces": compare_surfaces,
    "tracks": compare_tracks,
    "matrices": compare_matrices,
    "profiles": compare_profiles,
    "spectra": compare_spectra,
    "edges": compare_edges,
    "sharpness": compare_sharpness,
    "chains": drawn_chains,
    "basins": compare_basins,
    "outliers": compare_outliers,
    "predictions": compare_predictions,
    "learning coefficients": compare_learning_coefficients,
}


class Kind(NamedTuple):
    """A kind of comparison, and how it is made.

    Args:
        name: one of `KINDS`.
        how: title, labels and the like, that can be written as JSON.
        more: numbers of all runs together.
    """

    name: str
    how: Mapping[str, Any]
    more: Sequence[Stored] = ()


def together(kind: Kind, cases: Sequence[Case], numbers: Sequence[Stored]) -> Stored:
    """Return the numbers of a comparison, from those of each case: all that its figure shows."""
    arrays, parts = joined([*numbers, *kind.more])
    of_cases = [[case.run, case.split, case.number, case.alone] for case in cases]
    notes = {"of": kind.name, "how": kind.how, "cases": of_cases, "parts": parts}
    return Stored(Path(), COMPARISON, kind.how.get("title", ""), arrays, notes)


def compare(stored: Stored) -> Comparison:
    """Return the comparison of these numbers, see `together`."""
    notes = stored.notes
    cases = [Case(run, split, number, stored.path, alone=alone) for run, split, number, alone in notes["cases"]]
    return KINDS[notes["of"]](cases, parts_of(stored), notes["how"])
