"""`lsam sharpness RUN`: measure the rise of the loss in a ball around states, on average and at worst."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.compare.comparison import cell
from lsam_hpc.landscape.compare.kinds import Kind
from lsam_hpc.landscape.curvature.sharpness import CASES, NORMS, RHOS, SAMPLES, STEPS, M, Sharpness, sharpness
from lsam_hpc.landscape.figures.draw_curvature import draw_sharpness
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.report.tables import places, write_arrays, write_csv
from lsam_hpc.landscape.states import SYNTAX, state
from lsam_hpc.tools import source
from lsam_hpc.tools.as_json import with_json
from lsam_hpc.tools.case_facts import Prepared
from lsam_hpc.tools.jobs import share
from lsam_hpc.tools.ranks import Ranks, add_ranks, objective_options, set_threads
from lsam_hpc.tools.several import Runs, Verb, each_run
from lsam_hpc.trajectory import Run
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.text import columns

NORM_NAMES = {"l2": "L2", "linf": "L-infinity"}
HEAD = ("state", "case", "norm", "rho", "sharpness", "standard_error", "loss")
SETTINGS = ("adaptive", "normalise", "m", "steps", "restarts", "seed")  # options that are arguments of `sharpness`


@with_json
def main(argv: Sequence[str]) -> int:
    """Compute, print, write and draw, for one run or to compare several; return the exit code."""
    return each_run(argv, Verb(_parser(), _one, _prepare, lambda args: str(args.name), lambda _: (".h5",), _compare))


def _one(options_of_run: argparse.Namespace) -> int:
    ranks = Ranks()
    args, run, objective = ranks.raise_on_all(lambda: _begin(options_of_run))
    ends = [f".{args.format}", ".h5", ".csv"]
    out = ranks.on_first(lambda: places(source.folder(args, run), args.name, ends, overwrite=args.overwrite))
    points = ranks.raise_on_all(lambda: {name: objective.vector(state(run, name)) for name in args.at})
    for x in points.values():
        ranks.raise_on_all(partial(objective.check, x))
    cases = [
        (name, case, norm, rho)
        for case in args.case
        for norm in args.norm
        for name in args.at
        for rho in args.rho or RHOS[case, norm, args.adaptive]
    ]
    jobs = [_job(args, objective, points[name], case=case, norm=norm, rho=rho) for name, case, norm, rho in cases]
    results = share(ranks, jobs, None if args.quiet else "lsam sharpness")
    if ranks.is_first:
        rows = [(*case, *result) for case, result in zip(cases, results, strict=True)]
        print(columns([HEAD, *(tuple(map(cell, row)) for row in rows)]))
        table = dict(zip(HEAD, map(list, zip(*rows, strict=True)), strict=True))
        panels = _panels(args, cases, results)
        heading = source.heading(args, run, objective)
        figure = {"kind": "sharpness", "title": heading, "panels": [_panel(args, *case[1:3]) for case in cases]}
        notes = {"figure": figure, **{name: getattr(args, name) for name in SETTINGS}}
        write_csv(out[".csv"], table)
        write_arrays(out[".h5"], table, notes | objective_options(args, objective))
        draw_sharpness(panels, out[f".{args.format}"], heading)
        print("\n" + "\n".join(str(path) for path in out.values()))
    return 0


def _begin(args: argparse.Namespace) -> tuple[argparse.Namespace, Run, Objective]:
    source.parse(_parser(), args)
    args.adaptive, args.normalise = not args.plain, not args.raw_logits
    args.at = args.at.split(",")
    for name, known in (("case", CASES), ("norm", NORMS)):
        words = getattr(args, name).split(",")
        if wrong := [word for word in words if word not in known]:
            raise InputError(f"--{name}: expected some of {', '.join(known)}, found {wrong[0]!r}")
        setattr(args, name, words)
    try:
        args.rho = [float(word) for word in args.rho.split(",")] if args.rho else []
    except ValueError as error:
        raise InputError(f"--rho: expected numbers as in 0.001,0.002, found {args.rho!r}") from error
    if any(not 0 < rho < math.inf for rho in args.rho):
        raise InputError(f"--rho: expected numbers > 0, found {args.rho}")
    for name in ("m", "steps", "restarts"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name}: expected 1 or more, found {getattr(args, name)}")
    set_threads(args)
    run = Run(args.run, partial=args.partial)
    return args, run, source.objective(args, run)


def _parser() -> Parser:
    parser = source.parser(
        "sharpness",
        "Compute the rise of the loss within a ball around states, on average or at worst, in the L2 or the "
        "L-infinity norm. Defaults are those of Andriushchenko et al. 2023: adaptive, with normalised logits, 128 "
        "samples at a time.",
        several=True,
    )
    parser.add_argument("--at", default="center", metavar="STATE,...", help=f"each {SYNTAX} (default: center)")
    parser.add_argument("--case", default=",".join(CASES), help="some of average, worst (default: both)")
    parser.add_argument("--norm", default=",".join(NORMS), help="some of l2, linf (default: both)")
    parser.add_argument("--rho", metavar="RHO,...", help="radii (default: the paper's four for each case and norm)")
    plain = "use one radius for all parameters instead of radii relative to their size"
    parser.add_argument("--plain", action="store_true", help=plain)
    parser.add_argument("--raw-logits", action="store_true", help="use the raw logits, or a model that has none")
    parser.add_argument("--m", type=int, default=M, help=f"samples that share a worst case (default: {M})")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"ascent steps, or draws (default: {STEPS})")
    parser.add_argument("--restarts", type=int, default=1, help="ascents, the first from the state (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="seed of draws and restarts (default: 0)")
    parser.add_argument("--name", default="sharpness", help="base name of the files (default: sharpness)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    source.add_objective(parser, SAMPLES, both=True)
    add_ranks(parser)
    return parser


def _prepare(args: argparse.Namespace) -> Prepared:
    args, run, objective = _begin(args)
    return Prepared(run, objective, [state(run, name) for name in args.at])


def _compare(_: Runs) -> Kind:
    return Kind("sharpness", {})


def _job(
    args: argparse.Namespace, objective: Objective, x: Tensor, *, case: str, norm: str, rho: float
) -> Callable[[], Sharpness]:
    options = {name: getattr(args, name) for name in SETTINGS}
    return lambda: sharpness(objective, x, rho, case, norm, **options)


def _panel(args: argparse.Namespace, case: str, norm: str) -> str:
    return f"{case} case, {NORM_NAMES[norm]}{', adaptive' if args.adaptive else ''}"


def _panels(
    args: argparse.Namespace, cases: Sequence[tuple[str, str, str, float]], results: Sequence[Sharpness]
) -> dict[str, dict[str, Any]]:
    panels: dict[str, dict[str, Any]] = {}
    for case in args.case:
        for norm in args.norm:
            states = panels.setdefault(_panel(args, case, norm), {})
            for name in args.at:
                rows = [
                    (c[3], s.value, s.error) for c, s in zip(cases, results, strict=True) if c[:3] == (name, case, norm)
                ]
                states[name] = tuple(np.array(column) for column in zip(*rows, strict=True))
    return panels


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
