"""`lsam diagnose RUN`: check whether the chains are samples, and how the exchanges went."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.landscape.chains.diagnosis import CheckResult, are_samples, diagnose
from lsam_hpc.landscape.chains.statistics import Chains, chains
from lsam_hpc.landscape.compare.chains import compare_chains
from lsam_hpc.landscape.compare.comparison import Case, run_labels
from lsam_hpc.landscape.compare.kinds import Kind, together
from lsam_hpc.landscape.figures.draw_chains import draw_chains
from lsam_hpc.landscape.figures.stored import Stored
from lsam_hpc.landscape.packages import require
from lsam_hpc.landscape.report.tables import places, write_arrays, write_csv
from lsam_hpc.tools import source
from lsam_hpc.tools.comparison_files import DEFAULT_OUT, new_files, write
from lsam_hpc.trajectory import Run
from lsam_hpc.util.document import add_json, document
from lsam_hpc.util.progress import Progress
from lsam_hpc.util.text import columns

MARKS = {True: "good", False: "BAD", None: "-"}
WIDTH = 118


def main(argv: Sequence[str]) -> int:
    """Print the diagnosis and draw it; return the exit code."""
    parser = source.parser(
        "diagnose",
        "Check whether a run's chains can be used as samples (R-hat, effective sample size, temperature) and how the "
        "exchanges went (staleness, waits, slow and failed ranks, rejected exchanges); say what to change.",
        several=True,
        tables=False,
    )
    parser.add_argument(
        "--from",
        dest="start",
        type=float,
        default=0.5,
        metavar="SHARE",
        help="share of rows to discard at the start of each chain (default: 0.5)",
    )
    parser.add_argument("--components", type=int, default=3, help="principal components of the sketches (default: 3)")
    add_json(parser, "print numbers and verdicts as JSON, and nothing else on stdout")
    parser.add_argument("--name", default="diagnose", help="base name of the files (default: diagnose)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    args = parser.parse_args(argv)
    if len(args.run) > 1:
        return _compare(args)
    args.run = args.run[0]
    source.parse(parser, args, "arviz")
    run = Run(args.run, partial=args.partial)
    out = places(source.folder(args, run), args.name, [f".{args.format}", ".h5", ".csv"], overwrite=args.overwrite)
    with Progress(None if args.quiet else "lsam diagnose", 2 * len(run.ranks)) as progress:
        statistics = chains(run, args.start, args.components, progress.advance)
    verdicts = diagnose(statistics)
    for line in run.problems:
        print(line, file=sys.stderr)
    if args.json or not args.quiet:
        print(document(summary(statistics, verdicts)) if args.json else table(statistics, verdicts))
    title = f"{run.path.resolve().name}, {len(statistics.used)} chains, from {100 * args.start:g} % of the run on"
    write_csv(
        out[".csv"],
        {
            field.name: [getattr(verdict, field.name) for verdict in verdicts]
            for field in dataclasses.fields(CheckResult)
        },
    )
    stored = _stored(statistics, verdicts)
    write_arrays(out[".h5"], stored.arrays, {**stored.notes, "figure": {"kind": "diagnose", "title": title}})
    draw_chains(statistics, out[f".{args.format}"], title)
    if not args.json and not args.quiet:
        print("\n" + "\n".join(str(path) for path in out.values()))
    return 0


def _compare(args: argparse.Namespace) -> int:
    """Print and draw the diagnoses of several runs."""
    require(*source.FIGURES, "arviz")
    paths = [Path(run) for run in args.run]
    labels = run_labels(paths)
    folder = Path(args.out or DEFAULT_OUT)
    out = new_files(folder, f"compare-{args.name}", (f".{args.format}", ".h5", ".csv"), overwrite=args.overwrite)
    runs = {label: Run(path, partial=args.partial) for label, path in zip(labels, paths, strict=True)}
    count = 2 * sum(len(run.ranks) for run in runs.values())
    with Progress(None if args.quiet else "lsam diagnose", count) as progress:
        statistics = {label: chains(run, args.start, args.components, progress.advance) for label, run in runs.items()}
    for line in (line for run in runs.values() for line in run.problems):
        print(line, file=sys.stderr)
    comparison = compare_chains(statistics)
    folder.mkdir(parents=True, exist_ok=True)
    cases = [Case(label, "", i, path) for i, (label, path) in enumerate(zip(labels, paths, strict=True))]
    numbers = [_stored(of_run, diagnose(of_run)) for of_run in statistics.values()]
    write(comparison, together(Kind("chains", {}), cases, numbers), out)
    if args.json:
        print(document({label: summary(of_run, diagnose(of_run)) for label, of_run in statistics.items()}))
    elif not args.quiet:
        print(comparison.table, *out.values(), sep="\n")
    return 0


def _stored(statistics: Chains, verdicts: Sequence[CheckResult]) -> Stored:
    """Return the numbers that are written."""
    arrays: dict[str, Any] = {f"draws/{quantity.name}": quantity.draws for quantity in statistics.quantities}
    arrays |= {name: getattr(statistics, name) for name in ("staleness", "waits", "explained")}
    return Stored(Path(), "diagnose", "", arrays, summary(statistics, verdicts))


def table(statistics: Chains, verdicts: Sequence[CheckResult]) -> str:
    """Return the diagnosis as text."""
    rows = [("quantity", "chains", "draws each", "every", "R-hat", "bulk ESS", "tail ESS", "autocorrelation time")]
    for quantity in statistics.quantities:
        chains_, draws = quantity.draws.shape
        rows.append(
            (
                quantity.name,
                str(chains_),
                str(draws),
                f"{quantity.spacing:g} steps",
                f"{quantity.mixing.rhat:.3f}",
                f"{quantity.mixing.ess_bulk:.0f}",
                f"{quantity.mixing.ess_tail:.0f}",
                f"{quantity.tau:.0f} steps",
            )
        )
    answer = "yes" if are_samples(list(verdicts)) else "no"
    lines = [columns(rows), "", f"Are these chains samples? {answer}.", ""]
    for verdict in verdicts:
        head = f"{MARKS[verdict.good]:>4}  {verdict.name}: "
        lines.append(textwrap.fill(head + verdict.text, WIDTH, subsequent_indent=" " * 6))
    return "\n".join(lines)


def summary(statistics: Chains, verdicts: Sequence[CheckResult]) -> dict[str, Any]:
    """Return all numbers except the series, ready for JSON; unknown values are None."""
    plain: dict[str, Any] = _plain(
        {
            "samples": are_samples(list(verdicts)),
            "from": statistics.start,
            "chains": statistics.used,
            "quantities": {
                q.name: {**q.mixing._asdict(), "draws": q.draws.shape[1], "spacing": q.spacing, "tau_steps": q.tau}
                for q in statistics.quantities
            },
            "explained": statistics.explained.tolist(),
            "spread": None
            if statistics.spread is None
            else {
                **dataclasses.asdict(statistics.spread),
                "kernel": statistics.spread.kernel,
                "implied_temperature": statistics.spread.implied,
            },
            "staleness": statistics.staleness.tolist(),
            "waits": dict(zip(("median", "p90", "max"), np.quantile(waits, (0.5, 0.9, 1)).tolist(), strict=True))
            if len(waits := statistics.waits)
            else None,
            "ranks": [dataclasses.asdict(rank) for rank in statistics.ranks],
            "verdicts": [dataclasses.asdict(verdict) for verdict in verdicts],
        }
    )
    return plain


def _plain(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
