"""Writes a run's report as one HTML file that needs no network, no server and no other file."""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.chains.diagnosis import CheckResult
from lsam_hpc.util.files import atomic_path

KINDS = {".png": "image/png", ".svg": "image/svg+xml"}
LINKED = ".pdf"  # of figures that are not embedded
DPI = 150.0  # of a PNG image that does not say it


@dataclass(frozen=True)
class Picture:
    """A figure, embedded in the page, or a link to its file.

    Args:
        source: the image as a data URI; empty for a link.
        alt: description for people who cannot see the figure.
        caption: text below the figure.
        width: of the figure in points, 1/72 inch. At as many pixels, text of 9 points is 9 pixels high.
        link: address of the file, relative to the page.
    """

    source: str
    alt: str
    caption: str
    width: int = 600
    link: str = ""


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
    """A part of the page; all but id and title are optional, and are shown in this order."""

    id: str
    title: str
    text: str = ""
    facts: Sequence[tuple[str, str]] = ()  # names and values
    verdicts: Sequence[CheckResult] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    terms: Mapping[str, str] = field(default_factory=dict)  # definitions
    space: Mapping[str, Any] | None = None  # traces and layout of Plotly
    names: Sequence[str] = ()  # names of the chains in `space`
    label: str = ""


@dataclass(frozen=True)
class Report:
    """The report of a run."""

    title: str
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
                f"report: expected the package {error.name}, found none: pip install 'lsam-hpc[analysis]'"
            ) from error
        text = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
        environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
        environment.filters["unbroken"] = lambda words: words.replace(" %", "\u00a0%")
        template = environment.from_string(text)
        space = next((section.space for section in self.sections if section.space), None)
        page = template.render(
            title=self.title,
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
    data = path.read_bytes()
    text = base64.b64encode(data).decode()
    return Picture(f"data:{KINDS[path.suffix]};base64,{text}", alt, caption, _width(data))


def link(path: Path, page: Path, alt: str, caption: str) -> Picture:
    """Return a file that a page cannot embed as a link from it."""
    return Picture("", alt, caption, link=quote(os.path.relpath(path.resolve(), page.resolve().parent)))


def _width(image: bytes) -> int:
    """Return the width of an SVG or PNG image in points; 600 for one that does not say it."""
    if svg := re.search(rb"<svg[^>]*?\bwidth=\"([0-9.]+)(pt|px|)\"", image[:4000]):
        return round(float(svg[1]) * (1 if svg[2] == b"pt" else 0.75))
    if not image.startswith(b"\x89PNG"):
        return 600
    pixels = int.from_bytes(image[16:20], "big")
    at = image.find(b"pHYs", 0, 4000)  # pixels per meter
    per_inch = int.from_bytes(image[at + 4 : at + 8], "big") * 0.0254 if at > 0 else DPI
    return round(72 * pixels / (per_inch or DPI))


def cell(value: object, spec: str = ".4g") -> str:
    """Return a value as text for a table; unknown values (None, NaN) become a hyphen."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    return format(value, spec) if isinstance(value, float) else str(value)
