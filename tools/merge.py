"""`lsam merge RUN OUT.h5`: write a whole run into one file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory import Run, index, merge
from lsam_hpc.trajectory.snapshot import COMPRESSIONS
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.progress import Progress, add_quiet


def main(argv: Sequence[str]) -> int:
    """Write the file; return the exit code."""
    parser = Parser(
        prog="lsam merge",
        description="Write a whole run, also a killed one, into one file, or write an index of the ranks' files.",
    )
    parser.add_argument("run", help="the run directory, or one rank's file")
    parser.add_argument("out", nargs="?", help="the file to write")
    parser.add_argument("--index", action="store_true", help="write RUN/run.h5, which refers to the ranks' files")
    parser.add_argument("--partial", action="store_true", help="skip damaged ranks and rows, and list them")
    parser.add_argument("--compression", choices=COMPRESSIONS, default="gzip", help="for snapshots (default: gzip)")
    add_quiet(parser)
    args = parser.parse_args(argv)
    if args.index == (args.out is not None):
        raise InputError(f"OUT: expected a file to write or --index, found {'both' if args.index else 'neither'}")
    run = Run(args.run, partial=args.partial)
    if args.index:
        out = index(run)
    else:
        out = Path(args.out)
        with Progress(None if args.quiet else "lsam merge", len(run.ranks), "rank") as progress:
            merge(run, out, args.compression, progress.advance)
    for line in run.problems:
        print(line, file=sys.stderr)
    if not args.quiet:
        print(f"{out}: {len(run.ranks)} ranks")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
