"""`lsam basins SURFACE.h5`: find the minima of a surface, the saddles between them, and how deep each basin is."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.compare.comparison import Case, run_labels
from lsam_hpc.landscape.compare.kinds import Kind, compare, together
from lsam_hpc.landscape.figures.draw_basins import Flooded, arrays_of, draw_basins
from lsam_hpc.landscape.figures.figures import FORMATS
from lsam_hpc.landscape.figures.stored import Stored
from lsam_hpc.landscape.formats.loss_landscape import Surface, read_surface
from lsam_hpc.landscape.geometry.persistence import Basin, basins
from lsam_hpc.landscape.packages import require
from lsam_hpc.landscape.report.tables import notes_of, places, write_arrays, write_csv
from lsam_hpc.tools import source
from lsam_hpc.tools.as_json import with_json
from lsam_hpc.tools.comparison_files import DEFAULT_OUT, new_files, write
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.document import add_json
from lsam_hpc.util.progress import add_quiet
from lsam_hpc.util.text import columns

HEAD = ("values", "basin", "x", "y", "value", "saddle_x", "saddle_y", "saddle", "into", "persistence", "border")
MOST_PRINTED = 20  # number of basins of a loss that are printed


@with_json
def main(argv: Sequence[str]) -> int:
    """Compute, print, write and draw, for one surface or to compare several; return the exit code."""
    args = _parser().parse_args(argv)
    if args.least is not None and not 0 <= args.least < math.inf:
        raise InputError(f"--least: expected a number >= 0, found {args.least}")
    if len(args.run) > 1:
        return _compare(args)
    args.run = args.run[0]
    source.parse(_parser(), args, figures="")
    path = Path(args.run)
    flooded, limits, title = _flooded(path, args)
    folder = source.make_folder(Path(args.out) if args.out else path.parent)
    name = args.name or source.file_name(f"basins-{path.stem}")
    out = places(folder, name, [f".{args.format}", ".h5", ".csv"], overwrite=args.overwrite)
    rows = [row for key in flooded.found for row in _rows(flooded.surface, key, flooded.found[key])]
    table = {title: list(column) for title, column in zip(HEAD, zip(*rows, strict=True), strict=True)}
    write_csv(out[".csv"], table)
    figure = {"kind": "basins", "title": title, "labels": list(flooded.labels)}
    write_arrays(out[".h5"], {**table, **arrays_of(flooded)}, {"surface": str(path), **limits, "figure": figure})
    draw_basins(flooded, out[f".{args.format}"], title)
    _report(flooded.surface, flooded.found, rows)
    print("\n" + "\n".join(str(file) for file in out.values()))
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="lsam basins",
        description="Find the minima of a stored surface, the saddles at which their basins merge, and the persistence "
        "of each: the height of the saddle above the minimum. Draw them, and the merge tree; those of several surfaces "
        "on one scale.",
        allow_abbrev=False,
    )
    file = "a plane's file, of lsam surface or of loss-landscape; several are compared in one figure and table"
    parser.add_argument("run", metavar="SURFACE.h5", nargs="+", help=file)
    parser.add_argument("--values", metavar="NAME,...", help="arrays of the file (default: all losses)")
    parser.add_argument(
        "--least",
        type=float,
        metavar="HEIGHT",
        help="leave out basins that are not deeper (default: what rounding alone can make)",
    )
    where = "folder for figures and numbers (default: that of the file; of a comparison: ./figures)"
    parser.add_argument("--out", metavar="DIR", help=where)
    parser.add_argument("--name", help="base name of the files (default: basins, and the file's name)")
    parser.add_argument("--format", choices=FORMATS, default="png", help="format of figures (default: png)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    add_json(parser)
    add_quiet(parser)
    return parser


def _compare(args: argparse.Namespace) -> int:
    """Compare the basins of several surfaces; each has no files of its own."""
    require(*source.FIGURES)
    paths = [Path(file) for file in args.run]
    labels = run_labels(paths)
    folder = Path(args.out or DEFAULT_OUT)
    ends = (f".{args.format}", ".h5", ".csv")
    out = new_files(folder, f"compare-{args.name or 'basins'}", ends, overwrite=args.overwrite)
    cases = [Case(label, "", i, path) for i, (label, path) in enumerate(zip(labels, paths, strict=True))]
    surfaces = [_flooded(path, args)[0] for path in paths]
    numbers = [Stored(Path(), "basins", "", arrays_of(each), {"labels": list(each.labels)}) for each in surfaces]
    compared = together(Kind("basins", {"title": f"Basins of {len(surfaces)} surfaces"}), cases, numbers)
    comparison = compare(compared)
    folder.mkdir(parents=True, exist_ok=True)
    write(comparison, compared, out)
    print(comparison.table, end="\n\n")
    print("\n".join(str(file) for file in out.values()))
    return 0


def _flooded(path: Path, args: argparse.Namespace) -> tuple[Flooded, dict[str, float], str]:
    """Return a surface with its basins, the limits that these exceed, and the title of its figure."""
    surface = read_surface(path)
    names = _names(args.values, surface, path)
    limits = {"least": 0.0, "epsilon": _epsilon(path)} if args.least is None else {"least": args.least}
    found = {key: basins(surface.values[key], **limits) for key in names}
    figure = notes_of(path).get("figure", {})
    return Flooded(surface, found, figure.get("labels", ())), limits, figure.get("title", path.stem)


def _names(text: str | None, surface: Surface, path: Path) -> list[str]:
    if surface.y is None:
        raise InputError(f"{path}: expected a surface on a plane, found one on a line")
    losses = [name for name in surface.values if "loss" in name and not name.endswith(("_se", "_ess"))]
    names = text.split(",") if text else losses
    if not names:
        raise InputError(f"{path}: expected an array named ..._loss, found {', '.join(surface.values) or 'none'}")
    for name in names:
        if name not in surface.values:
            raise InputError(f"--values: expected some of {', '.join(surface.values)}, found {name!r}")
        if not np.isfinite(surface.values[name]).any():
            raise InputError(f"{path}: expected finite values of {name}, found none")
    return names


def _epsilon(path: Path) -> float:
    """Return the machine epsilon of a file's values; those of a file that does not name their type are float32."""
    double = notes_of(path).get("dtype") == "torch.float64"
    return float(np.finfo(np.float64 if double else np.float32).eps)


def _rows(surface: Surface, name: str, found: Sequence[Basin]) -> list[tuple[Any, ...]]:
    assert surface.y is not None
    rows = []
    for number, basin in enumerate(found, 1):
        row, column = basin.minimum
        across, along = (math.nan, math.nan) if basin.saddle is None else basin.saddle
        at = (math.nan, math.nan) if basin.saddle is None else (surface.x[int(along)], surface.y[int(across)])
        level = math.nan if basin.saddle is None else basin.level
        into = 0 if basin.into is None else basin.into + 1
        place = (float(surface.x[column]), float(surface.y[row]))
        rows.append(
            (name, number, *place, basin.value, *map(float, at), level, into, basin.persistence, int(basin.border))
        )
    return rows


def _report(surface: Surface, found: Mapping[str, Sequence[Basin]], rows: list[tuple[Any, ...]]) -> None:
    shown = [row for row in rows if row[1] <= MOST_PRINTED]
    print(columns([HEAD, *(tuple(map(_cell, HEAD, row)) for row in shown)]))
    print()
    for name, several in found.items():
        values = surface.values[name]
        if len(several) > MOST_PRINTED:
            print(f"{name}: {len(several)} basins, of which the {MOST_PRINTED} deepest are printed")
        if missing := int(np.count_nonzero(~np.isfinite(values))):
            print(f"{name}: {missing} of {values.size} points have no value, and no basin crosses them")
        if apart := sum(basin.into is None for basin in several) - 1:
            print(f"{name}: {apart} basins never merge with the deepest one: missing points separate them")
        if beyond := [str(i) for i, basin in enumerate(several[:MOST_PRINTED], 1) if basin.border]:
            print(f"{name}: at the border, so perhaps not a minimum: {', '.join(beyond)}")


def _cell(title: str, value: Any) -> str:  # noqa: ANN401
    if title == "border":
        return "yes" if value else "-"
    if title == "into":
        return str(value or "-")
    return str(value) if isinstance(value, (str, int)) else "-" if math.isnan(value) else f"{value:.5g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
