"""Figures of the spectra of each class's own loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.landscape.curvature.blocks import Spectrum
from lsam_hpc.landscape.figures.draw_curvature import NAMES
from lsam_hpc.landscape.figures.figures import COLOURS, SURFACE, figure, heading, save
from lsam_hpc.landscape.figures.scales import log_axis


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
    known = {name: s.density for name, s in spectra.items() if s.density}
    ends = [density.grid(2)[[0, -1]] for density in known.values()]
    at = np.linspace(min(low for low, _ in ends), max(high for _, high in ends), 1024)
    width = float(np.median([density.width for density in known.values()]))
    top = 0.0
    for name, density in known.items():
        values = density.smoothed(at, width)
        top = max(top, float(values.max()))
        ax.plot(at, np.maximum(values, 1e-300), linewidth=1, color=colours[name], label=f"class {name}")
    ax.set_ylim(top * 1e-7, top * 3)
    ax.set(xlabel="eigenvalue (loss / parameter²)", ylabel="density (share per unit)")
    log_axis(ax.yaxis)
    ax.legend(fontsize=7, ncols=2)


def _ends(ax: Any, spectra: dict[str, Spectrum], colours: dict[str, Any]) -> None:  # noqa: ANN401 (matplotlib's objects)
    names = [name for name, s in spectra.items() if len(s.values) or len(s.smallest)]
    for name in names:
        values = [s for s in (spectra[name].values[:1], spectra[name].smallest[:1]) if len(s)]
        ax.plot([name] * len(values), np.concatenate(values), "o-", markersize=4, color=colours[name])
    ax.axhline(0, color="black", linewidth=0.5)
    ax.set(xlabel="class", ylabel="largest and smallest eigenvalue")
