"""The numbers of each case of a comparison: from its own .h5 file, or from the one beside the comparison's figure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsam_hpc.landscape.compare.comparison import Case
from lsam_hpc.landscape.report.tables import numbers_of
from lsam_hpc.trajectory.openfile import opened


@dataclass(frozen=True)
class Part:
    """The numbers of a case.

    Args:
        case: a run on a split of its data.
        arrays: by name; texts are lists.
        notes: how they were made.
    """

    case: Case
    arrays: Mapping[str, Any]
    notes: Mapping[str, Any]


def read_parts(cases: Sequence[Case]) -> list[Part]:
    """Return the numbers in the .h5 file of each case."""
    parts = []
    for case in cases:
        with opened(case.file(".h5")) as (file, _):
            parts.append(Part(case, *numbers_of(file)))
    return parts


def pack(
    kind: str, title: str, parts: Sequence[Part], names: Collection[str], notes: Collection[str] = ()
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arrays and notes of a comparison's own .h5 file, from which `unpack` returns the parts.

    Args:
        kind: of the figure, for `lsam redraw`.
        title: of the figure.
        parts: numbers of the cases.
        names: of the arrays, or of the groups of arrays, that the figure needs.
        notes: names of the notes that it needs.
    """
    arrays = {
        f"{i}/{name}": values
        for i, part in enumerate(parts)
        for name, values in part.arrays.items()
        if name.partition("/")[0] in names
    }
    cases = [
        {
            "run": part.case.run,
            "split": part.case.split,
            "number": part.case.number,
            "notes": {name: part.notes[name] for name in notes},
        }
        for part in parts
    ]
    return arrays, {"figure": {"kind": kind, "title": title}, "cases": cases}


def unpack(arrays: Mapping[str, Any], notes: Mapping[str, Any]) -> list[Part]:
    """Return the parts of a comparison from its own .h5 file, see `pack`."""
    parts = []
    for i, of_case in enumerate(notes["cases"]):
        case = Case(of_case["run"], of_case["split"], of_case["number"], Path())
        start = f"{i}/"
        own = {name.removeprefix(start): values for name, values in arrays.items() if name.startswith(start)}
        parts.append(Part(case, own, of_case["notes"]))
    return parts
