"""`lsam learning-coefficient RUN`: estimate how many parameters a state uses, and whether the estimate can be used."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.chains import learning_coefficient as llc
from lsam_hpc.landscape.chains.mcmc import MIN_DRAWS
from lsam_hpc.landscape.compare.kinds import Kind
from lsam_hpc.landscape.figures.draw_learning_coefficient import draw_learning_coefficients, estimates_of
from lsam_hpc.landscape.figures.draw_learning_coefficient import part as array
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.report.tables import places, write_arrays, write_csv
from lsam_hpc.landscape.states import SYNTAX, state
from lsam_hpc.landscape.workqueue import evaluate, read_points
from lsam_hpc.tools import source
from lsam_hpc.tools.as_json import with_json
from lsam_hpc.tools.case_facts import Prepared
from lsam_hpc.tools.ranks import Ranks, add_ranks, digest, objective_options, set_threads
from lsam_hpc.tools.several import Runs, Verb, each_run
from lsam_hpc.trajectory import Run
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.progress import Progress
from lsam_hpc.util.text import columns

HEAD = ("state", "lambda", "standard_error", "half_parameters", "loss", "rhat", "ess_bulk", "ess_tail", "acceptance")
SETTINGS = ("gamma", "draws", "warmup", "leapfrog")  # options that are arguments of `chain`
WIDTH = 120


@with_json
def main(argv: Sequence[str]) -> int:
    """Compute, print, write and draw, for one run or to compare several; return the exit code."""
    return each_run(argv, Verb(_parser(), _one, _prepare, lambda args: str(args.name), lambda _: (".h5",), _compare))


def _one(options_of_run: argparse.Namespace) -> int:
    ranks = Ranks()
    args, run, objective = ranks.raise_on_all(lambda: _begin(options_of_run))
    figure = f".{args.format}"
    folder = ranks.on_first(lambda: source.folder(args, run))
    out = ranks.on_first(lambda: places(folder, args.name, [figure, ".h5", ".csv"], overwrite=args.overwrite))
    points = ranks.raise_on_all(lambda: {name: objective.vector(state(run, name)) for name in args.at})
    for x in points.values():
        ranks.raise_on_all(partial(objective.check, x))
    part = folder / f"{args.name}.part"
    chains = _chains(args, ranks, run, objective, points, part=part)
    if ranks.is_first:
        estimates = {
            name: llc.combined(objective, points[name], chains[i * args.chains : (i + 1) * args.chains])
            for i, name in enumerate(args.at)
        }
        rows = [_row(name, estimate) for name, estimate in estimates.items()]
        table = {title: list(column) for title, column in zip(HEAD, zip(*rows, strict=True), strict=True)}
        write_csv(out[".csv"], table)
        draws = {
            f"{quantity}/{array(name)}": getattr(estimate, quantity)
            for name, estimate in estimates.items()
            for quantity in ("losses", "distances", "virials", "step_size")
        }
        notes = {**_settings(args), "beta": 1 / math.log(objective.samples), **objective_options(args, objective)}
        notes |= {
            "inverse_temperature": llc.inverse_temperature(objective),
            "problems": {name: [c.name for c in each.checks() if not c.good] for name, each in estimates.items()},
        }
        title = source.heading(args, run, objective, "learning coefficient", f"gamma {args.gamma:g}")
        figure_notes = {"figure": {"kind": "learning-coefficient", "title": title}}
        write_arrays(out[".h5"], {**table, **draws}, notes | figure_notes)
        drawn = estimates_of({name: np.asarray(values) for name, values in {**table, **draws}.items()}, notes)
        draw_learning_coefficients(drawn, out[figure], title)
        shutil.rmtree(part, ignore_errors=True)
        print(_text(estimates, rows))
        print("\n" + "\n".join(str(path) for path in out.values()))
    return 0


def _chains(
    args: argparse.Namespace, ranks: Ranks, run: Run, objective: Objective, points: dict[str, Tensor], *, part: Path
) -> list[llc.Chain]:
    """Return the chains of all states; finished ones are kept in a folder, and read from it after a kill."""
    count, width = len(points) * args.chains, 3 * args.draws + 2 + objective.size
    size = 1 if ranks.comm is None else ranks.comm.size
    saved = len(read_points(part, width, count)) if ranks.is_first else 0
    progress = Progress(
        "lsam learning-coefficient" if ranks.is_first and not args.quiet else None,
        -(-(count - saved) // size) * (args.warmup + args.draws),
    )
    if saved and ranks.is_first and not args.quiet:
        print(f"lsam learning-coefficient: {saved} of {count} chains were finished before", file=sys.stderr)
    chosen = {name: getattr(args, name) for name in SETTINGS}

    def work(index: int) -> list[float]:
        x, seed = points[args.at[index // args.chains]], args.seed + index % args.chains
        return list(llc.row_of(llc.chain(objective, x, seed=seed, advance=progress.advance, **chosen)))

    vectors = digest(*(x.cpu().numpy() for x in points.values()))
    options = {"run": str(run.path), "at": args.at, "states": vectors, **_settings(args)}
    options |= objective_options(args, objective)
    with progress:
        table = evaluate(work, count, width, part, options, comm=ranks.comm)
    return [llc.chain_of(row, args.draws) for row in table]


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in (*SETTINGS, "chains", "seed")}


def _begin(args: argparse.Namespace) -> tuple[argparse.Namespace, Run, Objective]:
    source.parse(_parser(), args, "arviz")
    args.at = list(dict.fromkeys(args.at.split(",")))
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


def _prepare(args: argparse.Namespace) -> Prepared:
    args, run, objective = _begin(args)
    return Prepared(run, objective, [state(run, name) for name in args.at])


def _compare(runs: Runs) -> Kind:
    words = f"gamma {runs.args.gamma:g}, {runs.about}"
    return Kind("learning coefficients", {"title": f"Local learning coefficients, {words}"})


def _parser() -> Parser:
    parser = source.parser(
        "learning-coefficient",
        "Estimate the local learning coefficient (Lau et al. 2023) of states with Hamiltonian Monte Carlo around each: "
        "at most half the number of parameters at a minimum, less where it is degenerate. Say whether the chains have "
        "converged and whether the estimate is biased. Under mpirun the ranks share the chains; after a kill the same "
        "command resumes.",
        several=True,
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
    source.add_objective(parser, both=True)
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
