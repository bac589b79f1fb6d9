"""`lsam outliers RUN`: find the samples whose loss changes most between two states, and which pull in opposite ways."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.compare.kinds import Kind
from lsam_hpc.landscape.curvature.opposing_signals import COUNT, Outliers, outliers, sample
from lsam_hpc.landscape.figures.draw_outliers import arrays_of, draw_outliers
from lsam_hpc.landscape.geometry.axes import check_states
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.report.tables import places, write_arrays, write_csv
from lsam_hpc.landscape.states import SYNTAX, state
from lsam_hpc.tools import source
from lsam_hpc.tools.as_json import with_json
from lsam_hpc.tools.case_facts import Prepared
from lsam_hpc.tools.ranks import Ranks, add_ranks, objective_options, set_threads
from lsam_hpc.tools.several import Runs, Verb, each_run
from lsam_hpc.trajectory import Run
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.progress import Progress
from lsam_hpc.util.text import columns

HEAD = ("loss", "index", "class", "before", "after", "change", "gradient", "opposes", "cosine")


@with_json
def main(argv: Sequence[str]) -> int:
    """Compute, print, write and draw, for one run or to compare several; return the exit code."""
    return each_run(argv, Verb(_parser(), _one, _prepare, lambda args: str(args.name), lambda _: (".h5",), _compare))


def _one(options_of_run: argparse.Namespace) -> int:
    args, run, names, objective = _begin(options_of_run)
    out = places(source.folder(args, run), args.name, [f".{args.format}", ".h5", ".csv"], overwrite=args.overwrite)
    first, second = (objective.vector(each) for each in _states(run, names))
    objective.check(first)
    steps = 2 * len(objective.batches) + 2 * args.count
    with Progress(None if args.quiet else "lsam outliers", steps) as progress:
        result = outliers(objective, first, second, args.count, progress.advance)
    shown = [*result.rising.tolist(), *result.falling.tolist()]
    samples = [sample(objective, index) for index in shown]
    classes = [_class(targets) for _, targets in samples]
    rows = _rows(result, shown, classes)
    _print(result, names, rows)
    table = {title: [row[i] for row in rows] for i, title in enumerate(HEAD)}
    write_csv(out[".csv"], table)
    title = source.heading(args, run, objective, f"{names[0]} to {names[1]}")
    images = _images([inputs for inputs, _ in samples])
    figure = {"kind": "outliers", "title": title, "classes": classes}
    notes = {"between": names, "count": args.count, "figure": figure, **objective_options(args, objective)}
    write_arrays(out[".h5"], {**arrays_of(result), "images": np.array(images)}, notes)
    draw_outliers(result, out[f".{args.format}"], (names[0], names[1]), images=images, classes=classes, title=title)
    print("\n" + "\n".join(str(path) for path in out.values()))
    return 0


def _parser() -> Parser:
    parser = source.parser(
        "outliers",
        "Find the samples whose loss rises and falls most between two states, and pair those whose gradients point in "
        "opposite directions (Rosenfeld and Risteski 2023).",
        several=True,
    )
    between = f"two states, each {SYNTAX} (default: the last two snapshots of the lowest rank)"
    parser.add_argument("--between", metavar="A,B", help=between)
    count = f"largest number of rising and of falling samples (default: {COUNT})"
    parser.add_argument("--count", type=int, default=COUNT, help=count)
    parser.add_argument("--name", default="outliers", help="base name of the files (default: outliers)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    source.add_objective(parser, 0, both=True)
    add_ranks(parser)
    return parser


def _begin(args: argparse.Namespace) -> tuple[argparse.Namespace, Run, list[str], Objective]:
    source.parse(_parser(), args)
    if (comm := Ranks().comm) is not None and comm.size > 1:
        raise InputError(f"outliers: expected one rank, found {comm.size}: the ranks do not share the work")
    if args.count < 1:
        raise InputError(f"--count: expected 1 or more, found {args.count}")
    set_threads(args)
    run = Run(args.run, partial=args.partial)
    names = args.between.split(",") if args.between else [f"{run.ranks[0]}@-2", f"{run.ranks[0]}@-1"]
    if len(names) != 2:
        raise InputError(f"--between: expected two states as in 0@3,0@4, found {args.between!r}")
    return args, run, names, source.objective(args, run)


def _states(run: Run, names: Sequence[str]) -> list[NDArray[np.float32]]:
    states = [state(run, name) for name in names]
    check_states(states, names)
    return states


def _prepare(args: argparse.Namespace) -> Prepared:
    args, run, names, objective = _begin(args)
    return Prepared(run, objective, _states(run, names))


def _compare(runs: Runs) -> Kind:
    return Kind("outliers", {"title": f"Losses of samples at two states, {runs.about}"})


def _class(targets: Tensor) -> str:
    """Return a sample's class; a hyphen if its target is no class."""
    return str(int(targets[0])) if targets.ndim == 1 and not targets.is_floating_point() else "-"


def _rows(result: Outliers, shown: Sequence[int], classes: Sequence[str]) -> list[tuple[Any, ...]]:
    count = len(result.rising)
    partner = {i: (shown[count + j], result.cosines[i, j]) for i, j in result.pairs}
    partner |= {count + j: (shown[i], result.cosines[i, j]) for i, j in result.pairs}
    rows = []
    for place, (index, label) in enumerate(zip(shown, classes, strict=True)):
        other, cosine = partner.get(place, ("-", math.nan))
        losses = (float(result.before[index]), float(result.after[index]), float(result.change[index]))
        kind = "rises" if place < count else "falls"
        rows.append((kind, index, label, *losses, float(result.norms[place]), str(other), float(cosine)))
    return rows


def _images(inputs: Sequence[Tensor]) -> list[np.ndarray[Any, Any]]:
    """Return images of shape (H, W) or (H, W, 3), scaled together to [0, 1]; none if the inputs are no images."""
    if not inputs or inputs[0].ndim != 4 or inputs[0].shape[1] not in (1, 3):
        return []
    arrays = [np.moveaxis(each[0].double().cpu().numpy(), 0, -1) for each in inputs]
    low, high = min(each.min() for each in arrays), max(each.max() for each in arrays)
    return [((each - low) / max(high - low, 1e-300)).squeeze(-1 if each.shape[-1] == 1 else ()) for each in arrays]


def _print(result: Outliers, names: Sequence[str], rows: Sequence[tuple[Any, ...]]) -> None:
    if rows:
        print(columns([HEAD, *(tuple(map(_cell, row)) for row in rows)]))
    else:
        print("no sample's loss changes")
    n, change = len(result.change), result.change
    print(
        f"\nmean loss {result.before.mean():.5g} at {names[0]}, {result.after.mean():.5g} at {names[1]}; "
        f"{np.count_nonzero(change > 0)} of {n} samples rise, {np.count_nonzero(change < 0)} fall"
    )
    if rows:
        least = f", the most opposed one {result.cosines[result.pairs[0]]:.2f}" if result.pairs else ""
        print(
            f"these {len(rows)} samples make {100 * result.share:.0f} % of the sum of all absolute changes; "
            f"{len(result.pairs)} pairs of them have gradients with a negative cosine{least}"
        )


def _cell(value: Any) -> str:  # noqa: ANN401
    return str(value) if isinstance(value, (str, int)) else "-" if math.isnan(value) else f"{value:.4g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
