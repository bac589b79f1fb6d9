"""Draws the figures of basins, outliers, predict and learning-coefficient, alone and compared, from their numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from lsam_hpc.landscape.compare import basins, learning_coefficients, outliers, predictions
from lsam_hpc.landscape.compare.parts import unpack
from lsam_hpc.landscape.figures.draw_basins import draw_basins, flooded_of
from lsam_hpc.landscape.figures.draw_learning_coefficient import draw_learning_coefficients, estimates_of
from lsam_hpc.landscape.figures.draw_outliers import draw_outliers, outliers_of
from lsam_hpc.landscape.figures.draw_reliability import draw_reliability, panels_of

Arrays: TypeAlias = Mapping[str, Any]
Notes: TypeAlias = Mapping[str, Any]
COMPARED = (basins, outliers, predictions, learning_coefficients)  # modules of comparisons


def _basins(arrays: Arrays, notes: Notes, title: str, path: Path) -> Path:
    return draw_basins(flooded_of(arrays, notes["labels"]), path, title)


def _outliers(arrays: Arrays, notes: Notes, title: str, path: Path) -> Path:
    first, second = notes["between"]
    shown = {"images": arrays["images"], "classes": notes["classes"]}
    return draw_outliers(outliers_of(arrays), path, (first, second), title=title, **shown)


def _predict(arrays: Arrays, _: Notes, title: str, path: Path) -> Path:
    return draw_reliability(panels_of(arrays), path, title)


def _learning_coefficient(arrays: Arrays, notes: Notes, title: str, path: Path) -> Path:
    return draw_learning_coefficients(estimates_of(arrays, notes), path, title)


def _compared(draw: Callable[..., Path]) -> Callable[[Arrays, Notes, str, Path], Path]:
    return lambda arrays, notes, title, path: draw(unpack(arrays, notes), title, path)


REDRAWN: dict[str, Callable[[Arrays, Notes, str, Path], Path]] = {
    "basins": _basins,
    "outliers": _outliers,
    "predict": _predict,
    "learning-coefficient": _learning_coefficient,
    **{module.KIND: _compared(module.draw_parts) for module in COMPARED},
}
