"""Figures of the spectra of each class's own loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.landscape.curvature.results import Spectrum
from lsam_hpc.landscape.figures.draw_curvature import NAMES, draw_densities
from lsam_hpc.landscape.figures.figures import COLOURS, SURFACE, figure, heading, save


def draw_classes(spectra: Sequence[tuple[str, str, Spectrum]], path: Path, title: str = "") -> Path:
    """Draw the densities of the classes of each matrix, and the classes' largest and smallest eigenvalues.

    Args:
        spectra: matrix, class and spectrum; what was not asked for is left out.
        path: of the figure.
        title: of the figure.
    """
    matrices = list(dict.fromkeys(matrix for matrix, _, _ in spectra))
    classes = list(dict.fromkeys(name for _, name, _ in spectra))
    panels: list[tuple[Any, str]] = [
        *((_density, matrix) for matrix in matrices if any(s.density for m, _, s in spectra if m == matrix)),
        *(
            (_ends, matrix)
            for matrix in matrices
            if any(len(s.values) or len(s.smallest) for m, _, s in spectra if m == matrix)
        ),
    ]
    with figure(4.5 * max(1, len(panels)), 3.8, 1, max(1, len(panels))) as (drawing, axes):
        for ax, (draw, matrix) in zip(np.ravel(axes), panels, strict=False):
            draw(ax, {name: s for m, name, s in spectra if m == matrix}, _colours(classes))
            ax.set_title(NAMES[matrix])
        heading(drawing, title)
        return save(drawing, path)


def _colours(classes: Sequence[str]) -> dict[str, Any]:
    """Return a colour for each class, of a colour map if there are too many for `COLOURS`."""
    if len(classes) <= len(COLOURS):
        return dict(zip(classes, COLOURS, strict=False))
    from matplotlib import colormaps

    return dict(zip(classes, colormaps[SURFACE](np.linspace(0, 0.95, len(classes))), strict=True))


def _density(ax: Any, spectra: dict[str, Spectrum], colours: dict[str, Any]) -> None:  # noqa: ANN401 (matplotlib's objects)
    known = [
        (s.density, {"color": colours[name], "label": f"class {name}"}) for name, s in spectra.items() if s.density
    ]
    draw_densities(ax, known)
    ax.legend(fontsize=7, ncols=2)


def _ends(ax: Any, spectra: dict[str, Spectrum], colours: dict[str, Any]) -> None:  # noqa: ANN401 (matplotlib's objects)
    names = [name for name, s in spectra.items() if len(s.values) or len(s.smallest)]
    for name in names:
        values = [s for s in (spectra[name].values[:1], spectra[name].smallest[:1]) if len(s)]
        ax.plot([name] * len(values), np.concatenate(values), "o-", markersize=4, color=colours[name])
    ax.axhline(0, color="black", linewidth=0.5)
    ax.set(xlabel="class", ylabel="largest and smallest eigenvalue")
