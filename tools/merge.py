"""`lsam merge RUN OUT.h5`: a whole run in one file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lsam_hpc.arguments import Parser
from lsam_hpc.errors import InputError
from lsam_hpc.trajectory import Run, index, merge
from lsam_hpc.trajectory.snapshot import COMPRESSIONS


def main(argv: Sequence[str]) -> int:
    """Write the file; return the exit code."""
    parser = Parser(
        prog="lsam merge",
        description="Write a file that holds a whole run, also one that was killed, or an index of the ranks' files.",
    )
    parser.add_argument("run", help="the run directory, or one rank's file")
    parser.add_argument("out", nargs="?", help="the file to write")
    parser.add_argument("--index", action="store_true", help="write RUN/run.h5, which leads to the files beside it")
    parser.add_argument(
        "--partial", action="store_true", help="leave out ranks and rows that are damaged, and name them"
    )
    parser.add_argument("--compression", choices=COMPRESSIONS, default="gzip", help="of snapshots (default: gzip)")
    given = parser.parse_args(argv)
    if given.index == (given.out is not None):
        raise InputError(f"OUT: expected a file to write or --index, found {'both' if given.index else 'neither'}")
    run = Run(given.run, partial=given.partial)
    if given.index:
        out = index(run)
    else:
        out = Path(given.out)
        merge(run, out, given.compression)
    for line in run.problems:
        print(line, file=sys.stderr)
    print(f"{out}: {len(run.ranks)} ranks")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
