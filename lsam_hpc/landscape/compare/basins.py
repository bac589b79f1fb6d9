"""Basins of several surfaces: panels with common levels, merge trees on one scale, and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from lsam_hpc.landscape.compare.comparison import Case, Comparison, of_rows
from lsam_hpc.landscape.figures.draw_basins import Flooded, draw_basins_of, flooded_of
from lsam_hpc.landscape.figures.stored import Stored


def compare_basins(cases: Sequence[Case], numbers: Sequence[Stored], how: Mapping[str, Any]) -> Comparison:
    """Return the comparison of surfaces, a row for each of their losses; `how` has the title."""
    surfaces = {c.run: flooded_of(s.arrays, s.notes["labels"]) for c, s in zip(cases, numbers, strict=True)}
    rows = [row for label, flooded in surfaces.items() for row in _rows(label, flooded)]
    return Comparison(*of_rows(rows), partial(draw_basins_of, surfaces, title=how["title"]))


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
