"""One style for all figures: colours that colour-blind people tell apart, text that stays text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsam_hpc.errors import InputError
from lsam_hpc.files import appearing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg")
# Okabe and Ito 2008, "Color Universal Design", in an order in which neighbours differ in lightness too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#F0E442")
CENTER = "#000000"  # of the center, in every figure
SURFACE = "viridis"  # of losses: lightness rises with the value
STYLE: dict[str, Any] = {
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "lsam-hpc",  # the same file from the same numbers
    "svg.fonttype": "none",  # text stays text
}


@contextmanager
def figure(width: float = 6.0, height: float = 4.0, rows: int = 1, cols: int = 1) -> Iterator[tuple[Figure, Any]]:
    """Give a figure and its axes in the project's style.

    Args:
        width: of the whole, inches.
        height: of the whole, inches.
        rows: of axes.
        cols: of axes.

    Yields:
        The figure, and its axes: one, or an array of shape (rows, cols).

    Raises:
        InputError: matplotlib is missing.
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
        drawn = Figure(
            figsize=(width, height)
        )  # not by pyplot, which needs a display's back end and keeps all it makes
        FigureCanvasAgg(drawn)
        yield drawn, drawn.subplots(rows, cols, squeeze=rows == cols == 1)


def save(drawn: Figure, path: Path) -> Path:
    """Write a figure, replacing one that is there; the format is the name's ending.

    Raises:
        InputError: the format is not known, or the file cannot be written.
    """
    if path.suffix[1:] not in FORMATS:
        raise InputError(f"{path}: expected a name that ends in .{' or .'.join(FORMATS)}, found {path.suffix!r}")
    path.unlink(missing_ok=True)
    with appearing(path) as part:
        drawn.savefig(part, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None)
    return path
