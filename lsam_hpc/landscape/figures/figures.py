"""The style of all figures: colours for colour-blind readers, and text that remains text in SVG files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsam_hpc.errors import InputError
from lsam_hpc.util.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
# Okabe and Ito 2008, "Color Universal Design", in an order in which neighbours differ in lightness too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#F0E442")
CENTER = "#000000"  # colour of the center in every figure
SURFACE = "viridis"  # colour map of losses: lightness rises with the value
STYLE: dict[str, Any] = {
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "lsam-hpc",  # makes files reproducible
    "svg.fonttype": "none",  # keep text as text
}


@contextmanager
def figure(width: float = 6.0, height: float = 4.0, rows: int = 1, cols: int = 1) -> Iterator[tuple[Figure, Any]]:
    """Give a figure and its axes in the project's style.

    Args:
        width: of the figure in inches. Default: 6.
        height: of the figure in inches. Default: 4.
        rows: number of rows of axes. Default: 1.
        cols: number of columns of axes. Default: 1.

    Yields:
        The figure, and its axes: one, or an array of shape (rows, cols).

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise InputError(
            "figure: expected the package matplotlib, found none: pip install 'lsam-hpc[analysis]'"
        ) from error
    from cycler import cycler
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {**STYLE, "axes.prop_cycle": cycler(color=COLOURS)}
    with mpl.rc_context(style):
        # Not with pyplot, which selects a display's back end and keeps all figures in memory.
        drawing = Figure(figsize=(width, height))
        FigureCanvasAgg(drawing)
        yield drawing, drawing.subplots(rows, cols, squeeze=rows == cols == 1)


def save(drawing: Figure, path: Path) -> Path:
    """Write a figure, replacing an existing file, in the format of the name's ending; return the path.

    Raises:
        InputError: the format is unknown, or the file cannot be written.
    """
    if path.suffix[1:] not in FORMATS:
        raise InputError(f"{path}: expected a name that ends in .{' or .'.join(FORMATS)}, found {path.suffix!r}")
    path.unlink(missing_ok=True)
    with atomic_path(path) as part:
        drawing.savefig(part, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None)
    return path
