"""`lsam inspect RUN`: print a summary of a run, or check every row of it."""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.compare.comparison import cell, run_labels
from lsam_hpc.trajectory import Run, schema, verify
from lsam_hpc.trajectory.rows import Columns
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.document import add_json, document
from lsam_hpc.util.progress import Progress, add_quiet
from lsam_hpc.util.text import columns

HEAD = (
    "rank",
    "host",
    "time s",
    "steps",
    "steps/s",
    "last loss",
    "exchanges",
    "refused",
    "staleness mean",
    "max",
    "distance",
    "sketches",
    "snapshots",
    "dropped",
    "test error %",
)


WIDTH = 120  # characters of a line of text
DROPPED = [c.name for c in schema.DROPPED if c.name != "time"]


def main(argv: Sequence[str]) -> int:
    """Print the summary; return the exit code: 1 if --verify finds damaged or missing data, else 0."""
    parser = Parser(prog="lsam inspect", description="Print a summary of a run.")
    of_run = "the run directory, one rank's file, or a merged file; several are compared in one table"
    parser.add_argument("run", nargs="+", help=of_run)
    parser.add_argument("--partial", action="store_true", help="skip damaged ranks and rows, and list them")
    parser.add_argument("--verify", action="store_true", help="check every row; exit with 1 if anything is wrong")
    add_json(parser)
    add_quiet(parser)
    args = parser.parse_args(argv)
    if len(args.run) > 1:
        return _compare(args)
    with Run(args.run[0], partial=args.partial or args.verify) as run:
        with Progress("lsam inspect" if args.verify and not args.quiet else None, len(run.ranks), "rank") as progress:
            problems = verify(run, progress.advance) if args.verify else []
        try:
            info = summary(run)
        except InputError:
            if not problems:
                raise
            info = {"path": str(run.path)}  # `problems` says why there is no summary
        problems = problems or run.problems
    if args.json:
        print(document({**info, "problems": problems}))
    elif not args.quiet:
        shown = [text(info)] if "ranks" in info else []
        if problems:
            shown.append("\n".join(problems))
        elif args.verify:
            shown.append("verified: every row is whole and consistent")
        print("\n\n".join(shown))
    return int(args.verify and bool(problems))


def _compare(args: argparse.Namespace) -> int:
    """Print a table with a column for each run, and the options that differ."""
    if args.verify:
        raise InputError(f"--verify: expected one run, found {len(args.run)}")
    paths = [Path(run) for run in args.run]
    infos, problems = {}, []
    for label, path in zip(run_labels(paths), paths, strict=True):
        with Run(path, partial=args.partial) as run:
            infos[label] = summary(run)
            problems += run.problems
    if args.json or not args.quiet:
        print(document(infos) if args.json else comparison(infos))
    print(*problems, sep="\n", end="\n" * bool(problems), file=sys.stderr)
    return 0


def comparison(infos: dict[str, dict[str, Any]]) -> str:
    """Return the summaries of several runs as a table: a row for each number and each option that differs."""
    rows = [["", *infos]]
    perplexities = [info["center"]["test_perplexity"] for info in infos.values()]
    of_text = (
        [("test perplexity of the center", perplexities)] if any(value is not None for value in perplexities) else []
    )
    for name, values in (
        ("parameters", [info["parameters"] for info in infos.values()]),
        ("ranks", [len(info["ranks"]) for info in infos.values()]),
        ("ended", ["yes" if info["ended"] else "no" for info in infos.values()]),
        ("steps of all ranks", [sum(rank["steps"] for rank in info["ranks"]) for info in infos.values()]),
        ("time s", [_over(max, info, "seconds") for info in infos.values()]),
        ("last loss, mean of ranks", [_over(fmean, info, "loss") for info in infos.values()]),
        ("train loss of the center", [info["center"]["train_loss"] for info in infos.values()]),
        ("test error of the center %", [info["center"]["test_error"] for info in infos.values()]),
        *of_text,
        ("staleness, mean", [_over(fmean, info, "staleness_mean") for info in infos.values()]),
        ("distance from the center, mean", [_over(fmean, info, "distance") for info in infos.values()]),
    ):
        rows.append([name, *(cell(value) for value in values)])
    options = [info["config"] for info in infos.values()]
    for name in dict.fromkeys(name for config in options for name in config):
        values = [config.get(name) for config in options]
        if name != "out" and any(value != values[0] for value in values):
            rows.append([f"option {name}", *(_printable(str(value)) for value in values)])
    return columns(rows)


def _over(combine: Callable[[list[float]], float], info: dict[str, Any], name: str) -> float | None:
    """Return a number of all ranks, from those that have it."""
    known = [rank[name] for rank in info["ranks"] if rank[name] is not None]
    return combine(known) if known else None


def summary(run: Run) -> dict[str, Any]:
    """Return a run's attributes, options and results, and a summary of each rank; unknown values are None."""
    log = run.logs[run.ranks[0]]
    ranks = [_rank(run, rank) for rank in run.ranks]
    ended = [rank["result"] for rank in ranks if rank["result"]]
    center = next((result for result in ended if result["center_test_error"] is not None), dict[str, float]())
    return {
        "path": str(run.path),
        "attributes": {name: value for name, value in log.attributes.items() if name not in ("config", "rank", "host")},
        "config": run.config,
        "parameters": run.size,
        "tensors": len(run.layout),
        "ended": len(ended) == len(ranks),
        "ranks": ranks,
        "center": {name: center.get(f"center_{name}") for name in ("train_loss", "test_error", "test_perplexity")},
    }


def text(info: dict[str, Any]) -> str:
    """Return the summary as text: the run's origin and result, then a line per rank."""
    attributes, center = info["attributes"], info["center"]
    options = ", ".join(f"{key} {value}" for key, value in info["config"].items() if value not in (None, False))
    commit = f", commit {attributes['git_commit'][:12]}" if attributes["git_commit"] else ""
    changed = " with uncommitted changes" if attributes["git_dirty"] == 1 else ""
    job = f" in job {attributes['job_id']}" if attributes["job_id"] else ""
    end = ending(info)
    if center["test_error"] is not None:
        end = f"train loss {_cell(center['train_loss'], '.4f')}, test error {center['test_error']:.2f} %"
        end += f", test perplexity {center['test_perplexity']:.3f}" if center["test_perplexity"] is not None else ""
    lines = [
        f"run      {info['path']}: {attributes['ranks']} ranks, {attributes['created']}, "
        f"launched by {attributes['launcher']}{job}",
        f"code     lsam-hpc {attributes['code_version']}{commit}{changed}",
        f"with     {attributes['mpi_library']}; torch {attributes['torch_version']} on {attributes['device']}",
        *textwrap.wrap(f"options  {options}", WIDTH, subsequent_indent=9 * " "),
        f"model    {info['parameters']:,} parameters in {info['tensors']} tensors",
        f"states   {_states(info['ranks'])}",
        f"center   {end}",
        *_curvature(info["ranks"]),
    ]
    rows, values, states = (sum(rank["dropped"][kind] for rank in info["ranks"]) for kind in DROPPED)
    if rows or values or states:
        lines.append(
            f"dropped  {rows:,} rows, {values:,} optional values, {states:,} sketches and snapshots: "
            "the disk was slower than the log"
        )
    return "\n".join([*map(_printable, lines), "", columns([HEAD, *map(_row, info["ranks"])])])


def ending(info: dict[str, Any]) -> str:
    """Return whether a run has ended, from its `summary`: whether its ranks have logged a result."""
    ended, ranks = sum(bool(rank["result"]) for rank in info["ranks"]), len(info["ranks"])
    if not ended:
        return "the run has not ended, or was stopped"
    if ended < ranks:
        return f"{ended} of {ranks} ranks have ended"
    return "the run has ended; it logged no test error of the center"  # only `lsam train` measures it


def _rank(run: Run, rank: int) -> dict[str, Any]:
    log = run.log(rank)
    counts = log.counts()
    optional = [name for name in ("dropped", "curvature") if counts.get(name)]
    steps, exchanges, result, *tables = log.read("step", "exchange", "result", *optional)
    more = dict(zip(optional, tables, strict=True))
    dropped = {name: int(more["dropped"][name][-1]) if "dropped" in more else 0 for name in DROPPED}
    times, stale, distance = steps["time"], exchanges["staleness"], exchanges["center_distance"]
    return {
        "rank": rank,
        "host": log.attributes["host"],
        "seconds": _known(times[-1]) if len(times) else None,
        "steps": len(times),
        "steps_per_second": (len(times) - 1) / (times[-1] - times[0]) if len(times) and times[-1] > times[0] else None,
        "loss": _known(steps["loss"][-1]) if len(times) else None,
        "exchanges": len(stale),
        "refused": int(np.count_nonzero(exchanges["accepted"] == 0)),
        "staleness_mean": float(stale.mean()) if len(stale) else None,
        "staleness_max": int(stale.max()) if len(stale) else None,
        "distance": _known(distance[-1]) if len(stale) else None,
        "sketches": {name.partition("/")[2]: n for name, n in counts.items() if name.startswith("sketch/")},
        "snapshots": {name.partition("/")[2]: n for name, n in counts.items() if name.startswith("snapshot/")},
        "dropped": dropped,
        "curvature": _measurements(more["curvature"], times) if "curvature" in more else None,
        "result": {name: _known(values[0]) for name, values in result.items() if len(values)},
    }


def _measurements(table: Columns, times: NDArray[np.float64]) -> dict[str, Any]:
    """Return the number, first, largest and last eigenvalue of a rank, and the share of its time that they took."""
    values, end = table["eigenvalue"], max(float(table["time"][-1]), float(times[-1]) if len(times) else 0.0)
    return {
        "count": len(values),
        "first": float(values[0]),
        "largest": float(values.max()),
        "last": float(values[-1]),
        "share": float(table["seconds"].sum()) / end if end > 0 else None,
    }


def _curvature(ranks: list[dict[str, Any]]) -> list[str]:
    """Return a line on the curvature that was measured while training; none if it was not."""
    known = [rank["curvature"] for rank in ranks if rank["curvature"]]
    if not known:
        return []
    first, last = (float(np.mean([part[name] for part in known])) for name in ("first", "last"))
    share = max((part["share"] for part in known if part["share"] is not None), default=None)
    return [
        f"Hessian  largest eigenvalue {first:.3g} at first, {max(part['largest'] for part in known):.3g} at most, "
        f"{last:.3g} at last (mean of {len(known)} chains): {sum(part['count'] for part in known):,} measurements"
        + (f", {100 * share:.1f} % of a rank's time" if share is not None else "")
    ]


def _states(ranks: list[dict[str, Any]]) -> str:
    """Return the numbers of sketches and snapshots of each state, summed over the ranks."""
    texts = []
    for kind in ("sketches", "snapshots"):
        counts: Counter[str] = Counter()
        for rank in ranks:
            counts.update(rank[kind])
        of = ", ".join(f"{count:,} of the {state}" for state, count in counts.items() if count)
        texts.append(f"{kind}: {of or 'none'}")
    return "; ".join(texts)


def _row(rank: dict[str, Any]) -> tuple[str, ...]:
    formats = ("", "", ".1f", "", ".1f", ".4f", "", "", ".2f", "", ".3g", "", "", "", ".2f")
    sums = {kind: sum(rank[kind].values()) for kind in ("sketches", "snapshots", "dropped")}
    values = {**rank, **sums, "result": rank["result"].get("sample_test_error")}
    values.pop("curvature")  # it has a line of its own
    return tuple(_cell(value, spec) for value, spec in zip(values.values(), formats, strict=True))


def _cell(value: Any, spec: str) -> str:  # noqa: ANN401
    return "-" if value is None else _printable(format(value, spec))


def _printable(text: str) -> str:
    """Return a text with unprintable characters replaced: a file must not move the terminal's cursor."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
