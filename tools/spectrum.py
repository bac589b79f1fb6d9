"""`lsam spectrum RUN`: eigenvalues, trace and spectral density of the Hessian and Gauss-Newton matrix."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.compare.kinds import Kind
from lsam_hpc.landscape.compare.spectra import EDGE, FILE
from lsam_hpc.landscape.curvature.blocks import Block, Settings
from lsam_hpc.landscape.curvature.blocks import spectra as compute
from lsam_hpc.landscape.curvature.edge_of_stability import Edge, edge, measured, snapshots
from lsam_hpc.landscape.curvature.gradient_flow import GRADIENTS, TOLERANCE, Flow, check_flow, gradient_flow
from lsam_hpc.landscape.curvature.products import MATRICES, check_products, curvature, layers
from lsam_hpc.landscape.curvature.results import ALL, EIGENVALUES, KINDS, SMALLEST, TRACE, WHOLE, Spectrum
from lsam_hpc.landscape.curvature.spectrum import eigenpairs
from lsam_hpc.landscape.figures.draw_curvature import NAMES
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.report.tables import places
from lsam_hpc.landscape.states import SYNTAX, state
from lsam_hpc.tools import source
from lsam_hpc.tools.as_json import with_json
from lsam_hpc.tools.case_facts import Prepared
from lsam_hpc.tools.ranks import Ranks, add_ranks, digest, objective_options, set_threads
from lsam_hpc.tools.several import Runs, Verb, each_run
from lsam_hpc.tools.spectrum_files import suffixes, table, write, write_edge, write_flow
from lsam_hpc.trajectory import Run
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.progress import Progress

MEASURED = "measured"  # value of --along
NUMBERS = ("eigenvalues", "smallest", "steps", "repeats", "products", "seed", "vectors")  # options that are `Settings`


@with_json
def main(argv: Sequence[str]) -> int:
    """Compute, print, write and draw, for one run or to compare several; return the exit code."""
    return each_run(argv, Verb(_parser(), _one, _prepare, _name, _suffixes, _compare))


def _one(options_of_run: argparse.Namespace) -> int:
    ranks = Ranks()
    args, run, objective, settings = ranks.raise_on_all(lambda: _begin(options_of_run))
    name = _name(args)
    classes = {} if objective is None else ranks.raise_on_all(lambda: _classes(args, objective))
    blocks = [] if objective is None or args.only_others else _blocks(args, objective, classes)
    names = suffixes(blocks, args.format, along=bool(args.along), flow=args.flow_at)
    folder = ranks.on_first(lambda: source.folder(args, run))
    out = ranks.on_first(lambda: places(folder, name, names, overwrite=args.overwrite))
    title = None if args.quiet else "lsam spectrum"
    of_run = {"run": str(run.path), "seed": args.seed, **(objective_options(args, objective) if objective else {})}
    parts = folder / f"{name}.part", folder / f"{name}-edge.part"
    spectra: list[Spectrum] = []
    if objective is not None and blocks:
        x = ranks.raise_on_all(lambda: objective.vector(state(run, args.at)))
        ranks.raise_on_all(lambda: _check(objective, x, args.matrix))
        options = {**of_run, "at": args.at, "x": digest(x.cpu().numpy()), **_options(blocks, settings)}
        shared: dict[str, Any] = {
            "classes": classes,
            "folder": parts[0],
            "options": options,
            "comm": ranks.comm,
            "title": title,
        }
        spectra = compute(objective, x, blocks, settings, **shared)
    limits = {"gradients": args.flow_gradients, "tolerance": args.flow_tolerance}
    reached: tuple[Flow, float] | None = None
    if objective is not None and args.flow_at:
        reached = ranks.on_first(lambda: _flow(args, objective, state(run, args.at), limits))
    along: Edge | None = None
    if args.along == MEASURED:
        along = ranks.raise_on_all(lambda: measured(run))
    elif objective is not None and args.along:
        rows = ranks.raise_on_all(lambda: snapshots(run, args.along))
        options = {**of_run, "along": args.along, "matrix": args.matrix[0], "snapshots": rows}
        options["flow"] = flow = limits if args.flow else None
        shared = {"folder": parts[1], "options": options, "comm": ranks.comm, "title": title and f"{title}, snapshots"}
        along = edge(run, objective, rows, args.along, matrix=args.matrix[0], seed=args.seed, flow=flow, **shared)
    if ranks.is_first:
        if objective is not None and blocks:
            print(table(blocks, spectra, objective.samples, {name: part.samples for name, part in classes.items()}))
            heading = source.heading(args, run, objective, f"at {args.at}")
            notes = {"at": args.at, "title": heading, **asdict(settings), **objective_options(args, objective)}
            write(out, blocks, spectra, notes, format_=args.format)
        if along is not None:
            heading = f"{run.path.resolve().name}, {NAMES['hessian']}, measured in training"
            if objective is not None and args.along != MEASURED:
                words = (NAMES[args.matrix[0]], f"snapshots of the {args.along}")
                heading = source.heading(args, run, objective, *words)
            beside = measured(run) if args.along == "sample" and _has_measured(run) else None
            write_edge(out, along, heading, format_=args.format, measured=beside, flow=args.flow)
            if args.flow:
                known = np.isfinite(along.flow_sharpness)
                print(f"gradient flow: converged from {known.sum()} of {len(known)} snapshots")
        if reached:
            print(write_flow(out, *reached))
        computed = bool(blocks), bool(args.along and args.along != MEASURED)
        for part, used in zip(parts, computed, strict=True):
            if used:  # else it may be of another job, killed or running
                shutil.rmtree(part, ignore_errors=True)
        print("\n" + "\n".join(str(path) for path in out.values()))
    return 0


def _begin(args: argparse.Namespace) -> tuple[argparse.Namespace, Run, Objective | None, Settings]:
    """Return options, run, the loss (None if nothing is computed), and settings."""
    source.parse(_parser(), args)
    named = bool(args.kinds or args.layers or args.vectors or args.classes or args.smallest is not None)
    args.only_others = not named and bool(args.flow or (args.along and not args.at))
    args.flow_at = args.flow and not (args.along and not args.at)
    args.double = args.double or args.flow
    args.at = args.at or "center"
    args.matrix = args.matrix.split(",")
    for name in args.matrix:
        if name not in MATRICES:
            raise InputError(f"--matrix: expected some of {', '.join(MATRICES)}, found {name!r}")
    args.kinds = args.kinds.split(",") if args.kinds else []
    for name in args.kinds:
        if name not in KINDS:
            raise InputError(f"--kinds: expected some of {', '.join(KINDS)}, found {name!r}")
    if args.smallest is not None and "hessian" not in args.matrix:
        raise InputError(f"--smallest: expected --matrix hessian, found {','.join(args.matrix)}")
    if args.vectors and args.kinds and EIGENVALUES not in args.kinds:
        raise InputError(f"--vectors: expected {EIGENVALUES} among --kinds, found {','.join(args.kinds)}")
    try:
        given = {name: getattr(args, name) for name in NUMBERS}
        settings = Settings(**{name: value for name, value in given.items() if value is not None})
    except InputError as error:
        raise InputError(f"--{error}") from error
    set_threads(args)
    run = Run(args.run, partial=args.partial)
    if args.along == MEASURED:
        measured(run)
        if args.flow:
            raise InputError("--flow: expected snapshots or one state, found --along measured: use --along sample")
        if args.only_others:
            return args, run, None, settings
    elif args.along:
        snapshots(run, args.along)
    objective = source.objective(args, run)
    if args.flow:
        check_flow(objective, args.flow_gradients, args.flow_tolerance)
    return args, run, objective, settings


def _has_measured(run: Run) -> bool:
    return any("curvature" in run.log(rank).tables and run.log(rank).rows("curvature") for rank in run.ranks)


def _parser() -> Parser:
    parser = source.parser(
        "spectrum",
        "Compute the largest eigenvalues, the trace and the spectral density of the Hessian and the "
        "Gauss-Newton matrix of the loss at a state; with --along the sharpness at every snapshot, beside 2 / lr. "
        "Under mpirun the ranks share the work; after a kill the same command resumes.",
        several=True,
    )
    parser.add_argument("--at", metavar="STATE", help=f"{SYNTAX} (default: center)")
    parser.add_argument("--matrix", default="hessian,ggn", help="some of hessian, ggn (default: both)")
    parser.add_argument("--eigenvalues", type=int, default=10, metavar="K", help="how many, the largest (default: 10)")
    smallest = "also compute so many eigenvalues of the Hessian and its blocks, the smallest (default: none)"
    parser.add_argument("--smallest", type=int, metavar="K", help=smallest)
    parser.add_argument("--layers", action="store_true", help="also analyse each layer's diagonal block")
    parser.add_argument(
        "--kinds",
        metavar="KIND,...",
        help="some of eigenvalues, trace, density (default: all; for layers eigenvalues and trace; with --along none, "
        "unless --at, --layers, --class, --smallest or --vectors is given)",
    )
    classes = "also analyse the loss of each of these classes, or of all classes"
    parser.add_argument("--class", dest="classes", metavar="C,...", help=f"{classes} (--class all)")
    along = (
        "sample, center: compute the first matrix's largest eigenvalue at every snapshot of this state; measured: draw "
        "what lsam train --curvature-every logged, without computing"
    )
    parser.add_argument("--along", choices=("sample", "center", MEASURED), help=along)
    flow = "integrate the gradient flow from the state, or with --along from every snapshot, and report the solution's "
    parser.add_argument("--flow", action="store_true", help=f"{flow}sharpness; in float64")
    parser.add_argument("--vectors", action="store_true", help="also write the eigenvectors into the HDF5 file")
    group = parser.add_argument_group("estimates")
    group.add_argument("--steps", type=int, default=80, help="Lanczos steps for the density (default: 80)")
    group.add_argument(
        "--repeats", type=int, default=4, help="random vectors for the density, and estimates of the trace (default: 4)"
    )
    products = "matrix-vector products for a trace estimate, a multiple of 3 (default: 30)"
    group.add_argument("--products", type=int, default=30, help=products)
    most = f"most gradients of a flow, after which it has not converged (default: {GRADIENTS})"
    group.add_argument("--flow-gradients", type=int, default=GRADIENTS, metavar="N", help=most)
    error = f"error of a flow's step / length of the parameters (default: {TOLERANCE})"
    group.add_argument("--flow-tolerance", type=float, default=TOLERANCE, metavar="T", help=error)
    group.add_argument("--seed", type=int, default=0, help="seed of random vectors (default: 0)")
    parser.add_argument("--name", help="base name of the files (default: spectrum-STATE)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    source.add_objective(parser, both=True)
    add_ranks(parser)
    return parser


def _flow(
    args: argparse.Namespace, objective: Objective, start: NDArray[np.float32], limits: Mapping[str, Any]
) -> tuple[Flow, float]:
    """Return the gradient flow from a state, and the sharpness there; show the progress."""
    x = objective.vector(start)
    before = float(eigenpairs(objective, x, 1, seed=args.seed)[0][0])
    title = None if args.quiet else "lsam spectrum, gradient flow"
    with Progress(title, args.flow_gradients, "gradient") as bar:

        def show(used: int, loss: float) -> None:
            bar.reach(used, f"loss {loss:.4g}")

        return gradient_flow(objective, x, seed=args.seed, progress=show, **limits), before


def _check(objective: Objective, x: Tensor, matrices: Sequence[str]) -> None:
    """Raise InputError if the loss or a product with a matrix is not finite or not reproducible."""
    objective.check(x)
    for matrix in matrices:
        with curvature(objective, x, matrix, check=False) as operator:
            check_products(operator, matrix)


def _classes(args: argparse.Namespace, objective: Objective) -> dict[str, Objective]:
    """Return the losses of the classes that --class names."""
    if not args.classes:
        return {}
    parts = objective.of_classes()
    chosen = list(parts) if args.classes == "all" else list(dict.fromkeys(args.classes.split(",")))
    for name in chosen:
        if name not in parts:
            raise InputError(f"--class: expected all, or some of {', '.join(parts)}, found {name!r}")
    return {name: parts[name] for name in chosen}


def _blocks(args: argparse.Namespace, objective: Objective, classes: Iterable[str]) -> list[Block]:
    whole, inner = (tuple(args.kinds) or default for default in (KINDS, (EIGENVALUES, TRACE)))
    parts: list[tuple[str, int, list[int] | None, tuple[str, ...]]] = [(WHOLE, objective.size, None, whole)]
    if args.layers:
        sizes = [p.numel() for p in objective.params]
        parts += [(name, sum(sizes[i] for i in params), params, inner) for name, params in layers(objective).items()]
    groups = [(*part, ALL) for part in parts] + [(*parts[0], name) for name in classes]
    blocks = [Block(matrix, *part) for matrix in args.matrix for part in groups]
    # The Gauss-Newton matrix of a convex loss has no negative eigenvalues.
    more = () if args.smallest is None else (SMALLEST,)
    return [b._replace(kinds=b.kinds + more) if b.matrix == "hessian" else b for b in blocks]


def _options(blocks: Sequence[Block], settings: Settings) -> dict[str, Any]:
    """Return what the jobs' results depend on, beside the point and the data."""
    return {**asdict(settings), "blocks": [[block.matrix, block.layer, block.group, *block.kinds] for block in blocks]}


def _name(args: argparse.Namespace) -> str:
    return str(args.name or f"spectrum-{source.state_label(args.at or 'center')}")


def _suffixes(args: argparse.Namespace) -> Sequence[str]:
    return (EDGE,) if args.along else (FILE,)


def _prepare(args: argparse.Namespace) -> Prepared:
    args, run, objective, _ = _begin(args)
    if args.flow:
        raise InputError("--flow: expected one run, and one split of its data")
    if args.along and not args.only_others:
        raise InputError("--along: of several runs it excludes --at, --kinds, --layers, --class, --smallest, --vectors")
    if objective is None:
        return Prepared(run)
    if args.along:
        _, row = snapshots(run, args.along)[-1]
        return Prepared(run, objective, [run.snapshot(run.ranks[0], row, args.along)])
    return Prepared(run, objective, [state(run, args.at)])


def _compare(runs: Runs) -> Kind:
    if runs.args.along == MEASURED:
        return Kind("edges", {"title": f"{NAMES['hessian']}, measured in training", "counted": "measurements"})
    if runs.args.along:
        matrix = NAMES[runs.args.matrix.split(",")[0]]
        title = f"{matrix}, snapshots of the {runs.args.along}, {runs.about}"
        return Kind("edges", {"title": title, "counted": "snapshots"})
    return Kind("spectra", {"title": f"At {runs.args.at or 'center'}, {runs.about}"})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
