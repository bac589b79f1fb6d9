"""`lsam learning-coefficient RUN`: estimate how many parameters a state uses, and whether the estimate can be used."""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.chains import learning_coefficient as llc
from lsam_hpc.landscape.chains.mcmc import MIN_DRAWS
from lsam_hpc.landscape.figures.draw_learning_coefficient import draw_learning_coefficients
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.report.tables import places, write_arrays, write_csv
from lsam_hpc.landscape.states import SYNTAX, state
from lsam_hpc.tools import source
from lsam_hpc.tools.jobs import Progress, share
from lsam_hpc.tools.numbers import with_json
from lsam_hpc.tools.ranks import Ranks, add_ranks, objective_options, set_threads
from lsam_hpc.trajectory import Run
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.text import columns

HEAD = ("state", "lambda", "standard_error", "half_parameters", "loss", "rhat", "ess_bulk", "ess_tail", "acceptance")
SETTINGS = ("gamma", "draws", "warmup", "leapfrog")  # options that are arguments of `chain`
WIDTH = 120


@with_json
def main(argv: Sequence[str]) -> int:
    """Compute, print, write and draw; return the exit code."""
    ranks = Ranks()
    args, run, objective = ranks.raise_on_all(lambda: _begin(argv))
    figure = f".{args.format}"
    out = ranks.on_first(
        lambda: places(source.folder(args, run), args.name, [figure, ".h5", ".csv"], overwrite=args.overwrite)
    )
    points = ranks.raise_on_all(lambda: {name: objective.vector(state(run, name)) for name in args.at})
    for x in points.values():
        ranks.raise_on_all(partial(objective.check, x))
    settings = {name: getattr(args, name) for name in SETTINGS}
    rank, size = (0, 1) if ranks.comm is None else (ranks.comm.rank, ranks.comm.size)
    count = len(args.at) * args.chains
    progress = Progress(
        "lsam learning-coefficient" if ranks.is_first and not args.quiet else None,
        len(range(rank, count, size)) * (args.warmup + args.draws),
    )
    jobs = [
        partial(llc.chain, objective, points[name], seed=args.seed + i, advance=progress.advance, **settings)
        for name in args.at
        for i in range(args.chains)
    ]
    chains = share(ranks, jobs, None)
    if ranks.is_first:
        estimates = {
            name: llc.combined(objective, points[name], chains[i * args.chains : (i + 1) * args.chains])
            for i, name in enumerate(args.at)
        }
        rows = [_row(name, estimate) for name, estimate in estimates.items()]
        table = {title: list(column) for title, column in zip(HEAD, zip(*rows, strict=True), strict=True)}
        write_csv(out[".csv"], table)
        draws = {
            f"{quantity}/{name.replace('/', '-')}": getattr(estimate, quantity)
            for name, estimate in estimates.items()
            for quantity in ("losses", "distances", "virials", "step_size")
        }
        notes = {**settings, "chains": args.chains, "seed": args.seed, "beta": 1 / math.log(objective.samples)}
        write_arrays(out[".h5"], {**table, **draws}, notes | objective_options(args, objective))
        title = f"{run.path.resolve().name}, {args.split} data, n = {objective.samples}, gamma = {args.gamma:g}"
        draw_learning_coefficients(estimates, out[figure], title)
        print(_text(estimates, rows))
        print("\n" + "\n".join(str(path) for path in out.values()))
    return 0


def _begin(argv: Sequence[str]) -> tuple[argparse.Namespace, Run, Objective]:
    args = source.parse(_parser(), argv, "arviz")
    args.at = args.at.split(",")
    for name, least in (("chains", 1), ("draws", MIN_DRAWS), ("warmup", 1), ("leapfrog", 1)):
        if getattr(args, name) < least:
            raise InputError(f"--{name}: expected {least} or more, found {getattr(args, name)}")
    if not 0 < args.gamma < math.inf:
        raise InputError(f"--gamma: expected a number > 0, found {args.gamma}")
    set_threads(args)
    run = Run(args.run, partial=args.partial)
    objective = source.objective(args, run)
    llc.inverse_temperature(objective)
    return args, run, objective


def _parser() -> Parser:
    parser = source.parser(
        "learning-coefficient",
        "Estimate the local learning coefficient (Lau et al. 2023) of states with Hamiltonian Monte Carlo around each: "
        "at most half the number of parameters at a minimum, less where it is degenerate. Say whether the chains have "
        "converged and whether the estimate is biased.",
    )
    parser.add_argument("--at", default="center", metavar="STATE,...", help=f"each {SYNTAX} (default: center)")
    parser.add_argument(
        "--gamma",
        type=float,
        default=llc.GAMMA,
        help=f"precision of the Gaussian that keeps the chains near the state (default: {llc.GAMMA:g})",
    )
    parser.add_argument("--chains", type=int, default=llc.CHAINS, help=f"chains of each state (default: {llc.CHAINS})")
    parser.add_argument("--draws", type=int, default=llc.DRAWS, help=f"draws of each chain (default: {llc.DRAWS})")
    warmup = f"draws before them, which adapt the step size (default: {llc.WARMUP})"
    parser.add_argument("--warmup", type=int, default=llc.WARMUP, help=warmup)
    leapfrog = f"most gradients for a draw; each takes 1 to this many (default: {llc.LEAPFROG})"
    parser.add_argument("--leapfrog", type=int, default=llc.LEAPFROG, help=leapfrog)
    parser.add_argument("--seed", type=int, default=0, help="seed of the chains (default: 0)")
    name = "learning-coefficient"
    parser.add_argument("--name", default=name, help=f"base name of the files (default: {name})")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    source.add_objective(parser)
    add_ranks(parser)
    return parser


def _row(name: str, estimate: llc.LearningCoefficient) -> tuple[Any, ...]:
    return (
        name,
        estimate.value,
        estimate.error,
        estimate.size / 2,
        estimate.loss,
        estimate.rhat,
        estimate.mixing.ess_bulk,
        estimate.mixing.ess_tail,
        float(estimate.acceptance.min()),
    )


def _text(estimates: dict[str, llc.LearningCoefficient], rows: Sequence[tuple[Any, ...]]) -> str:
    """Return the table, and what is wrong with each estimate."""
    lines = [columns([HEAD, *(tuple(map(_cell, row)) for row in rows)]), ""]
    for name, estimate in estimates.items():
        bad = [check for check in estimate.checks() if not check.good]
        for check in bad:
            lines.append(textwrap.fill(f" BAD  {name}: {check.name}: {check.text}", WIDTH, subsequent_indent=" " * 6))
        if not bad:
            lines.append(f"  ok  {name}: the chains agree, and no bias was found")
    return "\n".join(lines)


def _cell(value: Any) -> str:  # noqa: ANN401
    return value if isinstance(value, str) else "-" if np.isnan(value) else f"{value:.5g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
