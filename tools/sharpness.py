"""`lsam sharpness RUN`: how far the loss rises in a ball around states, on average and at worst."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lsam_hpc.tools import source
from lsam_hpc.tools.jobs import share
from lsam_hpc.tools.ranks import Ranks, about, add_ranks, set_threads

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.andriushchenko2023 import CASES, NORMS, RHOS, SAMPLES, STEPS, M, Sharpness, sharpness
from lsam_hpc.landscape.draw_curvature import draw_sharpness
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.states import SYNTAX, state
from lsam_hpc.landscape.tables import places, write_arrays, write_csv
from lsam_hpc.text import columns
from lsam_hpc.trajectory import Run

HEAD = ("state", "case", "norm", "rho", "sharpness", "standard_error", "loss")


def main(argv: Sequence[str]) -> int:
    """Compute, print, write and draw; return the exit code."""
    ranks = Ranks()
    given, run, objective = ranks.agree(lambda: _begin(argv))
    figure = f".{given.format}"
    out = ranks.once(lambda: places(source.folder(given, run), given.name, [figure, ".h5", ".csv"], given.overwrite))
    points = ranks.agree(lambda: {name: objective.vector(state(run, name)) for name in given.at})
    for x in points.values():
        ranks.agree(lambda x=x: objective.check(x))
    cases = [(name, case, norm, rho) for case in given.case for norm in given.norm for name in given.at
             for rho in given.rho or RHOS[case, norm, given.adaptive]]  # fmt: skip
    jobs = [_job(given, objective, points[name], case, norm, rho) for name, case, norm, rho in cases]
    found = share(ranks, jobs, None if given.quiet else "lsam sharpness")
    if ranks.first:
        rows = [(*case, *own) for case, own in zip(cases, found, strict=True)]
        print(columns([HEAD, *(tuple(map(_cell, row)) for row in rows)]))
        table = dict(zip(HEAD, map(list, zip(*rows, strict=True)), strict=True))
        notes = {name: getattr(given, name) for name in ("adaptive", "normalise", "m", "steps", "restarts", "seed")}
        write_csv(out[".csv"], table)
        write_arrays(out[".h5"], table, notes | about(given, objective))
        draw_sharpness(_panels(given, cases, found), out[figure])
        print("\n" + "\n".join(str(path) for path in out.values()))
    return 0


def _begin(argv: Sequence[str]) -> tuple[argparse.Namespace, Run, Objective]:
    given = _parser().parse_args(argv)
    given.adaptive, given.normalise = not given.plain, not given.raw_logits
    given.at = given.at.split(",")
    for name, known in (("case", CASES), ("norm", NORMS)):
        words = getattr(given, name).split(",")
        if wrong := [word for word in words if word not in known]:
            raise InputError(f"--{name}: expected some of {', '.join(known)}, found {wrong[0]!r}")
        setattr(given, name, words)
    try:
        given.rho = [float(word) for word in given.rho.split(",")] if given.rho else []
    except ValueError as error:
        raise InputError(f"--rho: expected numbers as in 0.001,0.002, found {given.rho!r}") from error
    if any(not 0 < rho < math.inf for rho in given.rho):
        raise InputError(f"--rho: expected numbers > 0, found {given.rho}")
    for name in ("m", "steps", "restarts"):
        if getattr(given, name) < 1:
            raise InputError(f"--{name}: expected 1 or more, found {getattr(given, name)}")
    set_threads(given)
    run = Run(given.run, partial=given.partial)
    return given, run, source.objective(given, run)


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = source.parser(
        "sharpness",
        "Compute how far the loss rises within a ball around states: on average or at worst, in the L2 or the "
        "L-infinity norm. Defaults are those of Andriushchenko et al. 2023: adaptive, with normalised logits, 128 "
        "samples at a time.",
    )
    parser.add_argument("--at", default="center", metavar="STATE,...", help=f"each {SYNTAX} (default: center)")
    parser.add_argument("--case", default=",".join(CASES), help="some of average, worst (default: both)")
    parser.add_argument("--norm", default=",".join(NORMS), help="some of l2, linf (default: both)")
    parser.add_argument("--rho", metavar="RHO,...", help="radii (default: the paper's four for each case and norm)")
    parser.add_argument("--plain", action="store_true", help="a ball of the same radius in every parameter, not "
                        "relative to it")  # fmt: skip
    parser.add_argument("--raw-logits", action="store_true", help="the loss of the logits as they are, or of a model "
                        "that has none")  # fmt: skip
    parser.add_argument("--m", type=int, default=M, help=f"samples that share a worst case (default: {M})")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"of the ascent, or draws (default: {STEPS})")
    parser.add_argument("--restarts", type=int, default=1, help="of the ascent, the first from the state (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of draws and restarts (default: 0)")
    parser.add_argument("--name", default="sharpness", help="of the files (default: sharpness)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    source.add_objective(parser, SAMPLES)
    add_ranks(parser)
    return parser


def _job(
    given: argparse.Namespace, objective: Objective, x: Any, case: str, norm: str, rho: float  # noqa: ANN401
) -> Callable[[], Sharpness]:  # fmt: skip
    return lambda: sharpness(objective, x, rho, case, norm, given.adaptive, given.normalise, given.m, given.steps,
                             given.restarts, given.seed)  # fmt: skip


def _panels(
    given: argparse.Namespace, cases: Sequence[tuple[str, str, str, float]], found: Sequence[Sharpness]
) -> dict[str, dict[str, Any]]:
    panels: dict[str, dict[str, Any]] = {}
    for case in given.case:
        for norm in given.norm:
            states = panels.setdefault(f"{case} case, {norm}{', adaptive' if given.adaptive else ''}", {})
            for name in given.at:
                own = [
                    (c[3], s.value, s.error) for c, s in zip(cases, found, strict=True) if c[:3] == (name, case, norm)
                ]
                states[name] = tuple(np.array(column) for column in zip(*own, strict=True))
    return panels


def _cell(value: Any) -> str:  # noqa: ANN401
    return value if isinstance(value, str) else "-" if math.isnan(value) else f"{value:.5g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
