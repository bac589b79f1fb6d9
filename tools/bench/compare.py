"""`lsam bench compare --suite FILE --out DIR`: compare methods, each tuned with the same budget."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from lsam_hpc.compare.curves import draw
from lsam_hpc.compare.run import SuiteRunner, launcher
from lsam_hpc.compare.simulated import SimulatedRunner
from lsam_hpc.compare.suite_file import read_suite
from lsam_hpc.compare.tables import markdown, overview, write_curves, write_runs
from lsam_hpc.errors import InputError
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.progress import add_quiet

LAUNCHER = "mpirun -n {ranks}"


def main(argv: Sequence[str]) -> int:
    """Run the missing cells of a suite, then write its tables and curves; return the exit code."""
    parser = Parser(
        prog="lsam bench compare", description="Train methods x seeds x ranks x stragglers, and compare the results."
    )
    parser.add_argument("--suite", required=True, metavar="FILE", help="YAML or TOML: see docs/results.md")
    parser.add_argument("--out", required=True, metavar="DIR", help="for results; missing ones are added")
    parser.add_argument("--data-dir", metavar="DIR", help="data set's files; replaces the suite's data_dir")
    parser.add_argument("--launcher", default=LAUNCHER, metavar="WORDS", help="starts a job (default: %(default)s)")
    add_quiet(parser)
    args = parser.parse_args(argv)
    suite, out = read_suite(Path(args.suite), args.data_dir), Path(args.out)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out: expected a folder that can be written, found {out}: {error.strerror}") from error
    run = SuiteRunner if suite.simulate is None else SimulatedRunner
    runner = run(suite, out, launcher(args.launcher), _ignore if args.quiet else _tell)
    tuned = runner.tuned()
    records = runner.records(tuned)
    table = overview(records, suite.reference) + "\n" + markdown(records, suite.reference)
    (out / "tuned.json").write_text(json.dumps(tuned, indent=2) + "\n")
    (out / "tables.md").write_text(table)
    if tuned:
        write_runs(runner.trials(), out / "tuning.csv")
    write_runs(records, out / "runs.csv")
    write_curves(records, out / "curves.csv")
    figures = draw(records, out)
    if not args.quiet:
        print(table, *figures, sep="\n")
    return 0


def _tell(name: str) -> None:
    print(name, file=sys.stderr, flush=True)


def _ignore(_: str) -> None:
    pass
