"""`lsam path RUN`: measure loss barriers between states, and find curves of low loss."""

from __future__ import annotations

import argparse
import itertools
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.compare.kinds import Kind
from lsam_hpc.landscape.figures.draw_path import draw_matrix, draw_profiles
from lsam_hpc.landscape.figures.stored import Stored
from lsam_hpc.landscape.geometry.axes import check_states
from lsam_hpc.landscape.geometry.barriers import DOUBLE
from lsam_hpc.landscape.geometry.path import Matrix, Profile, curve, find_curve, line, lines, rounding
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.report.tables import places, write_arrays, write_csv
from lsam_hpc.landscape.states import SYNTAX, state
from lsam_hpc.tools import source
from lsam_hpc.tools.as_json import with_json
from lsam_hpc.tools.case_facts import Prepared
from lsam_hpc.tools.ranks import Ranks, add_ranks, digest, objective_options, set_threads
from lsam_hpc.tools.several import Runs, Verb, each_run
from lsam_hpc.trajectory import Run
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.text import columns

MOST_PRINTED = 12  # largest number of states for which the matrix is printed


@with_json
def main(argv: Sequence[str]) -> int:
    """Evaluate the paths and draw them, for one run or to compare several; return the exit code."""
    return each_run(argv, Verb(_parser(), _one, _prepare, _name, lambda _: (".h5",), _compare, _between_centers))


def _one(options_of_run: argparse.Namespace) -> int:
    ranks = Ranks()
    args, run, objective = ranks.raise_on_all(lambda: _begin(options_of_run))
    names = ranks.raise_on_all(lambda: _names(args, run))
    states = ranks.raise_on_all(lambda: _states(run, names))
    folder = ranks.on_first(lambda: source.folder(args, run))
    name = _name(args)
    out = ranks.on_first(lambda: places(folder, name, [f".{args.format}", ".h5", ".csv"], overwrite=args.overwrite))
    options = {
        **objective_options(args, objective),
        "run": str(run.path),
        "states": names,
        "digest": digest(*states),
        "points": args.points,
    }
    ranks.on_first(lambda: _check(args, objective, states[0]))
    part = folder / f"{name}.part"
    title = None if args.quiet else "lsam path"
    heading = source.heading(args, run, objective)
    if args.between:
        profiles = _between(args, ranks, objective, states, part=part, options=options, title=title)
        if ranks.is_first:
            figure = {"kind": "path", "title": heading, "paths": list(profiles)}
            _write_profiles(out, profiles, {**options, "figure": figure})
            draw_profiles(profiles, out[f".{args.format}"], (names[0], names[1]), heading)
            for label, profile in profiles.items():
                print(
                    f"{label}: barrier {profile.barrier:.6g}, loss {profile.loss[0]:.6g} and {profile.loss[-1]:.6g} "
                    f"at the ends, at most {profile.loss.max():.6g}"
                )
                _report_not_finite(profile.loss)
    else:
        matrix = lines(
            objective, states, names, args.points, folder=part, options=options, comm=ranks.comm, title=title
        )
        if ranks.is_first:
            _write_matrix(out, matrix, {**options, "figure": {"kind": "path", "title": heading}})
            draw_matrix(matrix, out[f".{args.format}"], heading)
            _print_matrix(matrix)
            _report_not_finite(matrix.loss)
    if ranks.is_first:
        for folder in (part, part.with_name(f"{name}-curve.part")):
            shutil.rmtree(folder, ignore_errors=True)
        for path in out.values():
            print(path)
    return 0


def _parser() -> Parser:
    parser = source.parser(
        "path",
        "Evaluate the loss on straight lines: between all ranks and the center, with a matrix of barrier heights, or "
        "between two states, with a curve of low loss on request. A barrier is the largest f(t) - ((1 - t) f(0) + "
        "t f(1)); rounding is none. Under mpirun the ranks share the points; after a kill the same command resumes.",
        several=True,
    )
    between = f"two states: {SYNTAX} (default: all pairs of the ranks and the center)"
    parser.add_argument("--between", metavar="STATE,STATE", help=between)
    parser.add_argument("--points", type=int, default=25, help="points of each line, with its ends (default: 25)")
    parser.add_argument(
        "--curve",
        action="store_true",
        help="with --between: also find a quadratic Bezier curve of low loss (Garipov et al. 2018)",
    )
    parser.add_argument("--curve-steps", type=int, default=200, help="gradient steps to find the curve (default: 200)")
    parser.add_argument("--curve-lr", type=float, default=0.05, help="their initial learning rate (default: 0.05)")
    parser.add_argument("--name", help="base name of the files (default: path and the states)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    source.add_objective(parser, both=True)
    parser.set_defaults(double=True)
    parser.add_argument(
        "--single",
        dest="double",
        action="store_false",
        help="compute in float32, in which rounding hides barriers up to 1e-5 (default: in float64)",
    )
    add_ranks(parser)
    return parser


def _begin(args: argparse.Namespace) -> tuple[argparse.Namespace, Run, Objective]:
    source.parse(_parser(), args)
    if args.curve and not args.between:
        raise InputError("--curve: expected two states in --between, found none")
    if args.points < 3:
        raise InputError(f"--points: expected 3 or more, found {args.points}")
    set_threads(args)
    run = Run(args.run, partial=args.partial)
    return args, run, source.objective(args, run)


def _name(args: argparse.Namespace) -> str:
    words = map(source.state_label, args.between.split(",")) if args.between else ["matrix"]
    return str(args.name or source.file_name("-".join(["path", *words])))


def _prepare(args: argparse.Namespace) -> Prepared:
    args, run, objective = _begin(args)
    if not args.between and len(run.ranks) == 1 and args.runs > 1:
        return Prepared(run, objective, [state(run, "center")], alone=False)
    return Prepared(run, objective, _states(run, _names(args, run)))


def _between_centers(runs: Runs, ranks: Ranks, part: Path) -> list[Matrix | None]:
    """Return the lines between the centers of all runs, a matrix for each split; none if their models differ."""
    if runs.args.between or len(runs.args.run) == 1:
        return [None for _ in dict.fromkeys(case.split for case in runs.cases)]
    ranks.on_first(lambda: part.mkdir(exist_ok=True))
    matrices: list[Matrix | None] = []
    for split in dict.fromkeys(case.split for case in runs.cases):
        of_split = [i for i, case in enumerate(runs.cases) if case.split == split]
        opened = [Run(runs.each[i].run, partial=runs.each[i].partial) for i in of_split]
        if any(run.layout != opened[0].layout for run in opened):
            matrices.append(None)
            continue
        names = [runs.cases[i].run for i in of_split]
        states = [state(run, "center") for run in opened]
        check_states(states, names)
        args, _, objective = _begin(argparse.Namespace(**vars(runs.each[of_split[0]])))
        options = {
            **objective_options(args, objective),
            "runs": names,
            "digest": digest(*states),
            "points": args.points,
        }
        shared: dict[str, Any] = {"folder": part / split, "options": options}
        title = None if args.quiet else "lsam path, centers"
        matrices.append(lines(objective, states, names, args.points, comm=ranks.comm, title=title, **shared))
    return matrices


def _compare(runs: Runs) -> Kind:
    if runs.args.between:
        return Kind("profiles", {"title": runs.about, "ends": runs.args.between.split(",")})
    return Kind("matrices", {"title": runs.about}, list(map(_stored, runs.together)))


def _stored(matrix: Matrix | None) -> Stored:
    """Return the numbers of the lines between centers as those of a figure; empty if there are none."""
    if matrix is None:
        return Stored(Path(), "path", "", {}, {})
    arrays = {"names": list(matrix.names), "t": matrix.t, "loss": matrix.loss, "error": matrix.error}
    dtype = "torch.float64" if matrix.epsilon == DOUBLE else "torch.float32"
    return Stored(Path(), "path", "", arrays, {"dtype": dtype})


def _names(args: argparse.Namespace, run: Run) -> list[str]:
    if args.between:
        names: list[str] = args.between.split(",")
        if len(names) != 2:
            raise InputError(f"--between: expected two states, {SYNTAX}, found {args.between}")
        return names
    if len(run.ranks) < 2:
        raise InputError(
            f"{run.path}: expected two ranks or more for a matrix, found {len(run.ranks)}: name two "
            "states, as in --between 0,center or --between 0@0,0"
        )
    log = run.log(run.ranks[0])
    center = ["center"] if "snapshot/center" in log.tables and log.rows("snapshot/center") else []
    return [*center, *map(str, run.ranks)]


def _states(run: Run, names: Sequence[str]) -> list[NDArray[np.float32]]:
    vectors = [state(run, name) for name in names]
    check_states(vectors, names)
    return vectors


def _check(args: argparse.Namespace, objective: Objective, x: NDArray[np.float32]) -> None:
    try:
        objective.check(objective.vector(x))
    except RuntimeError as error:  # torch's, if the model converts to float32
        if not args.double:
            raise
        found = str(error).splitlines()[0]
        raise InputError(
            f"model: expected one that computes in float64, found: {found}: --single computes in float32"
        ) from error


def _between(
    args: argparse.Namespace,
    ranks: Ranks,
    objective: Objective,
    states: Sequence[NDArray[np.float32]],
    *,
    part: Path,
    options: dict[str, Any],
    title: str | None,
) -> dict[str, Profile]:
    first, second = states
    shared: dict[str, Any] = {"points": args.points, "comm": ranks.comm}
    straight = line(objective, first, second, folder=part, options=options, title=title, **shared)
    profiles = {"straight line": straight}
    if args.curve:
        middle = ranks.on_first(lambda: find_curve(objective, first, second, args.curve_steps, args.curve_lr).cpu())
        part = part.with_name(part.name.replace(".part", "-curve.part"))
        more = {**options, "steps": args.curve_steps, "lr": args.curve_lr, "middle": digest(middle.numpy())}
        shared |= {"folder": part, "options": more, "title": title and f"{title} --curve"}
        profiles["Bezier curve"] = curve(objective, first, middle, second, **shared)
    return profiles


def _write_profiles(out: dict[str, Path], profiles: dict[str, Profile], options: dict[str, Any]) -> None:
    short = {label: label.split()[0].lower() for label in profiles}
    table: dict[str, Any] = {"t": profiles["straight line"].t}
    for label, profile in profiles.items():
        table |= {f"{short[label]}_loss": profile.loss, f"{short[label]}_error": profile.error}
    write_csv(out[".csv"], table)
    write_arrays(out[".h5"], {**table, **{f"{short[n]}_barrier": p.barrier for n, p in profiles.items()}}, options)


def _write_matrix(out: dict[str, Path], matrix: Matrix, options: dict[str, Any]) -> None:
    pairs = list(itertools.combinations(range(len(matrix.names)), 2))
    heights = matrix.barriers
    write_csv(
        out[".csv"],
        {
            "first": [matrix.names[i] for i, _ in pairs],
            "second": [matrix.names[j] for _, j in pairs],
            "barrier": [heights[i, j] for i, j in pairs],
            "first_loss": [matrix.loss[i, i, 0] for i, _ in pairs],
            "second_loss": [matrix.loss[j, j, 0] for _, j in pairs],
            "largest_loss": [matrix.loss[i, j].max() for i, j in pairs],
        },
    )
    arrays = {"t": matrix.t, "loss": matrix.loss, "error": matrix.error, "barrier": heights}
    write_arrays(out[".h5"], {"names": list(matrix.names), **arrays}, options)


def _print_matrix(matrix: Matrix) -> None:
    heights, count = matrix.barriers, len(matrix.names)
    if count <= MOST_PRINTED:
        rows = [["barrier", *matrix.names]]
        rows += [[name, *(f"{height:.3g}" for height in row)] for name, row in zip(matrix.names, heights, strict=True)]
        print(columns(rows))
    if matrix.highest is None:
        largest = float(np.nanmax(np.abs(matrix.loss[:, :, 0]), initial=0))
        known = bool(np.isfinite(heights).all())
        where = f"between any two of the {count} states" if known else "on the lines on which the loss is finite"
        print(
            f"no barrier {where}: on no line is the loss above the line between its ends "
            f"by more than rounding, {rounding(largest, largest, matrix.epsilon):.1g}"
        )
        return
    i, j = matrix.highest
    print(f"highest barrier: {heights[i, j]:.6g}, between {matrix.names[i]} and {matrix.names[j]}")


def _report_not_finite(loss: NDArray[np.float64]) -> None:
    if count := int(np.count_nonzero(~np.isfinite(loss))):
        print(f"loss: not finite at {count} of {loss.size} points")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
