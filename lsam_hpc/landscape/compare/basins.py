"""Basins of several surfaces: panels with common levels, merge trees on one scale, and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.landscape.compare.comparison import Case, Comparison, of_rows
from lsam_hpc.landscape.compare.parts import Part, pack
from lsam_hpc.landscape.figures.draw_basins import Flooded, arrays_of, draw_basins_of, flooded_of

KIND = "compare-basins"


def compare_basins(surfaces: Mapping[str, Flooded]) -> Comparison:
    """Return the comparison of surfaces: a row for each of their losses.

    Args:
        surfaces: with their basins, by label.
    """
    title = f"Basins of {len(surfaces)} surfaces"
    parts = [
        Part(Case(label, "", i, Path()), arrays_of(flooded), {"labels": list(flooded.labels)})
        for i, (label, flooded) in enumerate(surfaces.items())
    ]
    rows = [row for label, flooded in surfaces.items() for row in _rows(label, flooded)]
    names = {name.partition("/")[0] for name in parts[0].arrays}
    draw = partial(draw_parts, parts, title)
    return Comparison(*of_rows(rows), draw, pack(KIND, title, parts, names, ["labels"]))


def draw_parts(parts: Sequence[Part], title: str, path: Path) -> Path:
    """Draw the comparison."""
    return draw_basins_of({p.case.run: flooded_of(p.arrays, p.notes["labels"]) for p in parts}, path, title)


def _rows(label: str, flooded: Flooded) -> list[dict[str, Any]]:
    rows = []
    for name, basins in flooded.found.items():
        heights = [basin.persistence for basin in basins if basin.saddle is not None]
        rows.append(
            {
                "run": label,
                "values": name,
                "basins": len(basins),
                "lowest_minimum": basins[0].value,
                "next_minimum": basins[1].value if len(basins) > 1 else np.nan,
                "largest_persistence": max(heights, default=np.nan),
                "at_the_border": sum(basin.border for basin in basins),
            }
        )
    return rows
