"""The style of all figures: colours for colour-blind readers, and text that remains text in SVG files."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsam_hpc.errors import InputError
from lsam_hpc.util.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
# Okabe and Ito 2008, "Color Universal Design", in an order in which neighbours differ in lightness too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#F0E442")
CENTER = "#000000"  # colour of the center in every figure
LETTERS = 14  # of text of 9 to 10 points that fit into an inch
SURFACE = "viridis"  # colour map of losses: lightness rises with the value
STYLE: dict[str, Any] = {
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlesize": 10,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "lsam-hpc",  # makes files reproducible
    "svg.fonttype": "none",  # keep text as text
    "pdf.fonttype": 42,  # keep text as text: TrueType
}


@contextmanager
def figure(
    width: float = 6.0,
    height: float = 4.0,
    rows: int = 1,
    cols: int = 1,
    *,
    layout: str = "constrained",
    projection: str | None = None,
) -> Iterator[tuple[Figure, Any]]:
    """Give a figure and its axes in the project's style.

    Args:
        width: of the figure in inches. Default: 6.
        height: of the figure in inches. Default: 4.
        rows: number of rows of axes. Default: 1.
        cols: number of columns of axes. Default: 1.
        layout: matplotlib's name of it; "compressed" for axes of a fixed aspect. Default: "constrained".
        projection: of the axes, as "3d". Default: two-dimensional axes.

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
        drawing = Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]
        FigureCanvasAgg(drawing)
        kinds = {"projection": projection} if projection else {}
        yield drawing, drawing.subplots(rows, cols, squeeze=rows == cols == 1, subplot_kw=kinds)


def heading(drawing: Figure, text: str) -> None:
    """Write a figure's title, in as many lines as its width needs."""
    characters = int(drawing.get_figwidth() * LETTERS)
    count = -(-len(text) // characters)
    if count > 1:  # lines of about equal length
        characters = min(characters, len(text) // count + 10)
    parts = text.replace(" ", "\u00a0").replace(",\u00a0", ", ")  # breaks after a comma only
    lines = "\n".join(textwrap.wrap(parts, characters, break_long_words=False))
    drawing.suptitle(lines.replace("\u00a0", " "), fontsize=10)


def legend(drawing: Figure, handles: Sequence[Any], cols: int = 4) -> None:
    """Put a legend below a figure's axes, in as many columns as fit into its width; without handles none.

    Args:
        drawing: the figure.
        handles: artists with labels; one without a label is left out.
        cols: largest number of columns. Default: 4.
    """
    shown = [handle for handle in handles if not str(handle.get_label()).startswith("_")]
    lengths = [len(str(handle.get_label())) + 7 for handle in shown]  # with their handles
    room = 1.2 * LETTERS * drawing.get_figwidth()
    for count in range(min(cols, len(shown)), 0, -1):
        rows = -(-len(shown) // count)
        if count == 1 or sum(max(lengths[i : i + rows]) for i in range(0, len(shown), rows)) <= room:
            made = drawing.legend(handles=shown, loc="outside lower center", ncols=count, fontsize=8)
            for line in made.get_lines():  # thin or faint lines must be seen there too
                line.set_linewidth(max(line.get_linewidth(), 1.2))
            break


def save(drawing: Figure, path: Path) -> Path:
    """Write a figure, replacing an existing file, in the format of the name's ending; return the path.

    Raises:
        InputError: the format is unknown, or the file cannot be written.
    """
    if path.suffix[1:] not in FORMATS:
        raise InputError(f"{path}: expected a name that ends in .{' or .'.join(FORMATS)}, found {path.suffix!r}")
    path.unlink(missing_ok=True)
    _trim(drawing)
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix)  # makes files reproducible
    with atomic_path(path) as part:
        # "tight": nothing that is drawn is cut, and nothing is left empty around it.
        drawing.savefig(part, format=path.suffix[1:], metadata=undated, bbox_inches="tight", pad_inches=0.05)
    return path


def _trim(drawing: Figure) -> None:
    """Lower a figure of axes with a fixed aspect by the height that they leave empty."""
    if all(axes.get_aspect() == "auto" and axes.get_box_aspect() is None for axes in drawing.axes):
        return
    drawing.draw_without_rendering()
    boxes = [box for axes in drawing.axes if (box := axes.get_tightbbox()) is not None]
    ends = [0.0, float(drawing.bbox.height)]
    if drawing.legends:
        ends[0] = drawing.legends[0].get_window_extent().y1
    if drawing.texts and drawing.get_suptitle():
        ends[1] = drawing.texts[0].get_window_extent().y0
    spare = min(box.y0 for box in boxes) - ends[0], ends[1] - max(box.y1 for box in boxes)
    empty = sum(max(height, 0) for height in spare) - 0.15 * drawing.dpi
    if empty > 0:
        drawing.set_figheight(drawing.get_figheight() - empty / drawing.dpi)
