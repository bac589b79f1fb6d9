"""`lsam redraw FILE`: draw a figure again from the numbers beside it, in another format or on another scale."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.figures.figures import FORMATS
from lsam_hpc.landscape.figures.redraw import redraw
from lsam_hpc.landscape.figures.scales import Scale
from lsam_hpc.landscape.figures.stored import read
from lsam_hpc.landscape.packages import require
from lsam_hpc.landscape.report.tables import places
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.progress import add_quiet


def main(argv: Sequence[str]) -> int:
    """Read the numbers and draw them; return the exit code."""
    args = _parser().parse_args(argv)
    require("matplotlib", "matplotlib.figure")
    scale = Scale(args.log, _limits(args.limits), _levels(args.levels))
    path = Path(args.file)
    stored = read(path)
    if not stored.suffixes:
        raise InputError(f"{path}: expected the numbers of a figure, found a {stored.kind} without one")
    folder = Path(args.out) if args.out else path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: expected a folder that can be written, found {folder}: {error.strerror}") from error
    name = args.name or (f"{path.stem}-3d" if args.static_3d else path.stem)
    ends = {suffix: f"{suffix}.{args.format}" for suffix in stored.suffixes}
    files = places(folder, name, list(ends.values()), overwrite=args.overwrite)
    redraw(stored, {suffix: files[end] for suffix, end in ends.items()}, scale, space=args.static_3d)
    if not args.quiet:
        print(*files.values(), sep="\n")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="lsam redraw",
        description="Draw a figure of a landscape program, of one run or of several, again, from the numbers that were "
        "written beside it. Nothing is computed: neither the runs nor their models or data are needed.",
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", help="the figure's numbers, as RUN/figures/surface-center-random.h5")
    parser.add_argument("--format", choices=FORMATS, default="png", help="format of the figure (default: png)")
    parser.add_argument(
        "--log",
        action=argparse.BooleanOptionalAction,
        help="logarithmic colours of a surface, or axis of the values (default: as suits the values)",
    )
    limits = "smallest and largest value of the colours or the axis of values, as --limits 0,5 (default: of all values)"
    parser.add_argument("--limits", metavar="LOW,HIGH", help=limits)
    levels = "number of contours, about, as --levels 20, or their values, as --levels 0.1,0.2,0.5 (default: about 12)"
    parser.add_argument("--levels", metavar="N|VALUE,...", help=levels)
    parser.add_argument("--static-3d", action="store_true", help="draw a surface in three dimensions (NAME-3d)")
    parser.add_argument("--out", metavar="DIR", help="folder of the figure (default: that of FILE)")
    parser.add_argument("--name", help="base name of the figure (default: that of FILE)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing figures")
    add_quiet(parser)
    return parser


def _limits(text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    numbers = _numbers("--limits", text, "LOW,HIGH as in --limits 0,5")
    if len(numbers) != 2:
        raise InputError(f"--limits: expected LOW,HIGH as in --limits 0,5, found {text!r}")
    return numbers[0], numbers[1]


def _levels(text: str | None) -> int | tuple[float, ...] | None:
    if text is None or text.isdecimal():
        return None if text is None else int(text)
    return _numbers("--levels", text, "a number or values as in --levels 0.1,0.2,0.5")


def _numbers(option: str, text: str, expected: str) -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise InputError(f"{option}: expected {expected}, found {text!r}") from error


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
