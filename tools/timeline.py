"""`lsam timeline RUN OUT.json[.gz]`: write a run as a trace for Perfetto or chrome://tracing."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lsam_hpc.landscape.chains.timeline import write_timeline
from lsam_hpc.trajectory import Run
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.progress import Progress, add_quiet


def main(argv: Sequence[str]) -> int:
    """Write the trace; return the exit code."""
    parser = Parser(
        prog="lsam timeline",
        description="Write steps, exchanges, waits, logged states and checkpoints of every rank as a trace that "
        "ui.perfetto.dev or chrome://tracing shows.",
    )
    parser.add_argument("run", metavar="RUN", help="the run directory, one rank's file, or a merged file")
    parser.add_argument("out", metavar="OUT.json[.gz]", help="the file to write")
    parser.add_argument("--partial", action="store_true", help="skip damaged ranks and rows")
    add_quiet(parser)
    args = parser.parse_args(argv)
    run = Run(args.run, partial=args.partial)
    with Progress(None if args.quiet else "lsam timeline", len(run.ranks), "rank") as progress:
        count = write_timeline(run, Path(args.out), progress.advance)
    for line in run.problems:
        print(line, file=sys.stderr)
    if not args.quiet:
        print(f"{args.out}: {count} events of {len(run.ranks)} ranks; open it at ui.perfetto.dev")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
