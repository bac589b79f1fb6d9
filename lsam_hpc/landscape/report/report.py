"""Writes a run's report as one HTML file that needs no network, no server and no other file."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.chains.diagnosis import CheckResult
from lsam_hpc.landscape.figures.figures import CENTER, COLOURS, SURFACE
from lsam_hpc.landscape.formats.loss_landscape import Surface
from lsam_hpc.landscape.geometry.surface import LOSS
from lsam_hpc.landscape.geometry.tracks import Tracks, center_tracks
from lsam_hpc.util.files import atomic_path

KINDS = {".png": "image/png", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Picture:
    """A figure, embedded in the page.

    Args:
        source: the image as a data URI.
        alt: description for people who cannot see the figure.
        caption: text below the figure.
    """

    source: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Table:
    """A table of texts; the first cell of a row is the row's name."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False
    wraps: bool = False  # break long texts in cells


@dataclass(frozen=True)
class Section:
    """A part of the page: text, check results, figures, tables, and a surface to rotate, each of them optional."""

    id: str
    title: str
    text: str = ""
    verdicts: Sequence[CheckResult] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    space: Mapping[str, Any] | None = None  # traces and layout of Plotly
    names: Sequence[str] = ()  # names of the chains in `space`
    label: str = ""


@dataclass(frozen=True)
class Report:
    """The report of a run."""

    title: str
    subtitle: str
    sections: Sequence[Section]

    def write(self, out: Path) -> None:
        """Write the page.

        Args:
            out: the file; an existing one is replaced.

        Raises:
            InputError: jinja2 or plotly is not installed, or the file cannot be written.
        """
        try:
            from jinja2 import Environment, StrictUndefined
            from plotly.offline import get_plotlyjs
        except ImportError as error:
            raise InputError(
                f"report: expected the package {error.name}, found none: pip install 'lsam-hpc[landscape]'"
            ) from error
        text = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
        template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(text)
        space = next((section.space for section in self.sections if section.space), None)
        page = template.render(
            title=self.title,
            subtitle=self.subtitle,
            sections=self.sections,
            plotly=get_plotlyjs() if space else "",
            # "</" in the data could end the script element; JSON allows this escape.
            space=json.dumps(space).replace("<", "\\u003c"),
        )
        out.unlink(missing_ok=True)
        with atomic_path(out) as part:
            part.write_text(page, encoding="utf-8")


def picture(path: Path, alt: str, caption: str) -> Picture:
    """Return a PNG or SVG file as a figure of the page."""
    data = base64.b64encode(path.read_bytes()).decode()
    return Picture(f"data:{KINDS[path.suffix]};base64,{data}", alt, caption)


def space(tracks: Tracks, background: Surface, title: str) -> dict[str, Any]:
    """Return a surface of the loss on the tracks' plane that can be rotated, with the chains and the center on it.

    Args:
        tracks: samples and center on a plane.
        background: loss on that plane, around the tracks.
        title: of the loss axis.

    Returns:
        Traces and layout for Plotly; the "meta" of a chain's trace is the chain's name.
    """
    loss = background.values[LOSS]
    assert background.y is not None
    traces: list[dict[str, Any]] = [
        {
            "type": "surface",
            "x": _plain(background.x),
            "y": _plain(background.y),
            "z": _plain(loss),
            "colorscale": SURFACE.capitalize(),
            "opacity": 0.9,
            "colorbar": {"title": {"text": title}, "len": 0.7},
            "contours": {"z": {"show": True, "usecolormap": True}},
            "name": "loss",
            "showlegend": False,
        }
    ]
    lift = 0.01 * float(np.nanmax(loss) - np.nanmin(loss))
    for i, (rank, track) in enumerate(tracks.ranks.items()):
        height = on_surface(background, track.sample) + lift
        traces.append(_line(f"rank {rank}", COLOURS[i % 6], track.sample, height, f"rank {rank}"))
    for center in center_tracks(tracks):
        traces.append(_line("center", CENTER, center.at, on_surface(background, center.at) + 2 * lift, None))
    x, y = (label.partition(" (")[0] for label in tracks.labels[:2])
    layout = {
        "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
        "paper_bgcolor": "#fff",
        "legend": {"x": 0, "y": 1},
        "scene": {
            "xaxis": {"title": {"text": x}},
            "yaxis": {"title": {"text": y}},
            "zaxis": {"title": {"text": title}},
            "aspectmode": "cube",
        },
    }
    return {"traces": traces, "layout": layout}


def on_surface(background: Surface, places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the loss at places on the plane, by linear interpolation on the grid, shape (n,).

    Args:
        background: loss on a grid.
        places: coordinates, shape (n, 2); a place outside gets the loss at the nearest point of the grid's edge.
    """
    assert background.y is not None
    x, y, values = background.x, background.y, background.values[LOSS]
    i = np.clip(np.searchsorted(x, places[:, 0]) - 1, 0, len(x) - 2)
    j = np.clip(np.searchsorted(y, places[:, 1]) - 1, 0, len(y) - 2)
    s = np.clip((places[:, 0] - x[i]) / (x[i + 1] - x[i]), 0, 1)
    t = np.clip((places[:, 1] - y[j]) / (y[j + 1] - y[j]), 0, 1)
    low = (1 - s) * values[j, i] + s * values[j, i + 1]
    high = (1 - s) * values[j + 1, i] + s * values[j + 1, i + 1]
    losses: NDArray[np.float64] = (1 - t) * low + t * high
    return losses


def cell(value: object, spec: str = ".4g") -> str:
    """Return a value as text for a table; unknown values (None, NaN) become a hyphen."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return format(value, spec) if isinstance(value, float) else str(value)


def _line(
    name: str, colour: str, places: NDArray[np.float64], height: NDArray[np.float64], meta: str | None
) -> dict[str, Any]:
    return {
        "type": "scatter3d",
        "mode": "lines+markers",
        "name": name,
        "meta": meta,
        "x": _plain(places[:, 0]),
        "y": _plain(places[:, 1]),
        "z": _plain(height),
        "line": {"color": colour, "width": 5},
        "marker": {"size": 3, "color": colour},
    }


def _plain(values: NDArray[np.float64]) -> list[Any]:
    """Return numbers as lists for JSON, with None for numbers that are not finite."""
    lists: list[Any] = np.where(np.isfinite(values), values.astype(object), None).tolist()  # type: ignore[call-overload]
    return lists
