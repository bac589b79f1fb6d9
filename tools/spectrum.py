"""`lsam spectrum RUN`: eigenvalues, trace and spectral density of the Hessian and Gauss-Newton matrix."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.curvature.edge_of_stability import Edge, edge, joined, snapshots
from lsam_hpc.landscape.curvature.products import MATRICES, curvature, layers
from lsam_hpc.landscape.curvature.spectral_density import Density, density
from lsam_hpc.landscape.curvature.spectrum import eigenpairs
from lsam_hpc.landscape.curvature.trace import Trace, trace
from lsam_hpc.landscape.figures.draw_curvature import draw_edge, draw_layers, draw_spectra
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.report.tables import places, write_arrays, write_csv
from lsam_hpc.landscape.states import SYNTAX, state
from lsam_hpc.tools import source
from lsam_hpc.tools.jobs import share
from lsam_hpc.tools.ranks import Ranks, add_ranks, objective_options, set_threads
from lsam_hpc.trajectory import Run
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.text import columns

WHOLE = "all"  # name of the whole matrix among the blocks


class Block(NamedTuple):
    """A matrix, or the diagonal block of one layer."""

    matrix: str
    layer: str
    size: int
    params: list[int] | None


class Spectrum(NamedTuple):
    """The spectrum of a block."""

    values: NDArray[np.float64]
    vectors: NDArray[np.float64]
    trace: Trace
    density: Density


def main(argv: Sequence[str]) -> int:
    """Compute, print, write and draw; return the exit code."""
    ranks = Ranks()
    args, run, objective = ranks.raise_on_all(lambda: _begin(argv))
    name = args.name or f"spectrum-{source.state_label(args.at)}"
    out = ranks.on_first(lambda: places(source.folder(args, run), name, _suffixes(args), overwrite=args.overwrite))
    x = ranks.raise_on_all(lambda: objective.vector(state(run, args.at)))
    ranks.raise_on_all(lambda: _check(objective, x, args.matrix))
    title = None if args.quiet else "lsam spectrum"
    blocks = [
        Block(matrix, name, size, params) for matrix in args.matrix for name, size, params in _parts(args, objective)
    ]
    spectra = share(ranks, [_job(args, objective, x, block) for block in blocks], title)
    along: Edge | None = None
    if args.along:
        rows = ranks.raise_on_all(lambda: snapshots(run, args.along))
        options = {"state": args.along, "matrix": args.matrix[0], "seed": args.seed}
        jobs = [lambda row=row: edge(run, objective, [row], **options) for row in rows]
        along = joined(share(ranks, jobs, title and "lsam spectrum, snapshots"))
    if ranks.is_first:
        print(_table(blocks, spectra))
        _write(args, out, blocks, spectra, {"at": args.at, "seed": args.seed, **objective_options(args, objective)})
        if along is not None:
            _write_edge(args, out, along)
        print("\n" + "\n".join(str(path) for path in out.values()))
    return 0


def _begin(argv: Sequence[str]) -> tuple[argparse.Namespace, Run, Objective]:
    args = source.parse(_parser(), argv, "scipy", "curvlinops")
    args.matrix = args.matrix.split(",")
    for name in args.matrix:
        if name not in MATRICES:
            raise InputError(f"--matrix: expected some of {', '.join(MATRICES)}, found {name!r}")
    for name, least in (("eigenvalues", 1), ("steps", 1), ("repeats", 2)):
        if getattr(args, name) < least:
            raise InputError(f"--{name}: expected {least} or more, found {getattr(args, name)}")
    set_threads(args)
    run = Run(args.run, partial=args.partial)
    if args.along:
        snapshots(run, args.along)
    return args, run, source.objective(args, run)


def _parser() -> Parser:
    parser = source.parser(
        "spectrum",
        "Compute the largest eigenvalues, the trace and the spectral density of the Hessian and the Gauss-Newton "
        "matrix of the loss at a state; with --along the largest eigenvalue at every snapshot, beside 2 / lr.",
    )
    parser.add_argument("--at", default="center", metavar="STATE", help=f"{SYNTAX} (default: center)")
    parser.add_argument("--matrix", default="hessian,ggn", help="some of hessian, ggn (default: both)")
    parser.add_argument("--eigenvalues", type=int, default=10, metavar="K", help="how many, the largest (default: 10)")
    parser.add_argument("--layers", action="store_true", help="also analyse each layer's diagonal block")
    along = "also compute the first matrix's largest eigenvalue at every snapshot of this state"
    parser.add_argument("--along", choices=("sample", "center"), help=along)
    parser.add_argument("--vectors", action="store_true", help="also write the eigenvectors into the HDF5 file")
    group = parser.add_argument_group("estimates")
    group.add_argument("--steps", type=int, default=80, help="Lanczos steps for the density (default: 80)")
    group.add_argument(
        "--repeats",
        type=int,
        default=10,
        help="random vectors for the density, and estimates of the trace (default: 10)",
    )
    products = "matrix-vector products for a trace estimate, a multiple of 3 (default: 30)"
    group.add_argument("--products", type=int, default=30, help=products)
    group.add_argument("--seed", type=int, default=0, help="seed of random vectors (default: 0)")
    parser.add_argument("--name", help="base name of the files (default: spectrum-STATE)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    source.add_objective(parser)
    add_ranks(parser)
    return parser


def _check(objective: Objective, x: Tensor, matrices: Sequence[str]) -> None:
    """Raise InputError if a product with a matrix is not finite or not reproducible."""
    for matrix in matrices:
        with curvature(objective, x, matrix):
            pass


def _parts(args: argparse.Namespace, objective: Objective) -> list[tuple[str, int, list[int] | None]]:
    parts: list[tuple[str, int, list[int] | None]] = [(WHOLE, objective.size, None)]
    if args.layers:
        sizes = [p.numel() for p in objective.params]
        parts += [(name, sum(sizes[i] for i in params), params) for name, params in layers(objective).items()]
    return parts


def _job(args: argparse.Namespace, objective: Objective, x: Tensor, block: Block) -> Callable[[], Spectrum]:
    def work() -> Spectrum:
        options: dict[str, Any] = {"matrix": block.matrix, "seed": args.seed, "params": block.params, "check": False}
        k = min(args.eigenvalues, block.size)
        values, vectors = eigenpairs(objective, x, k, **options)
        return Spectrum(
            values,
            vectors if args.vectors else vectors[:0],
            trace(objective, x, products=args.products, repeats=args.repeats, **options),
            density(objective, x, steps=args.steps, repeats=args.repeats, **options),
        )

    return work


def _table(blocks: Sequence[Block], spectra: Sequence[Spectrum]) -> str:
    rows = [("matrix", "layer", "parameters", "largest", "second", "trace", "+-", "smallest node")]
    for block, spectrum in zip(blocks, spectra, strict=True):
        rows.append(
            (
                block.matrix,
                block.layer,
                f"{block.size:,}",
                f"{spectrum.values[0]:.5g}",
                f"{spectrum.values[1]:.5g}" if len(spectrum.values) > 1 else "-",
                f"{spectrum.trace.value:.5g}",
                f"{spectrum.trace.error:.2g}",
                f"{spectrum.density.nodes[0]:.4g}",
            )
        )
    return columns(rows)


def _suffixes(args: argparse.Namespace) -> list[str]:
    figure = f".{args.format}"
    return [
        figure,
        ".h5",
        "-eigenvalues.csv",
        "-traces.csv",
        "-density.csv",
        *([f"-layers{figure}"] if args.layers else []),
        *([f"-edge{figure}", "-edge.csv"] if args.along else []),
    ]


def _write(
    args: argparse.Namespace,
    out: dict[str, Path],
    blocks: Sequence[Block],
    spectra: Sequence[Spectrum],
    notes: dict[str, Any],
) -> None:
    each = list(zip(blocks, spectra, strict=True))
    eigenvalues = [(b.matrix, b.layer, i + 1, value) for b, s in each for i, value in enumerate(s.values)]
    write_csv(
        out["-eigenvalues.csv"],
        dict(zip(("matrix", "layer", "number", "eigenvalue"), zip(*eigenvalues, strict=True), strict=True)),
    )
    traces = [(b.matrix, b.layer, b.size, s.trace.value, s.trace.error) for b, s in each]
    write_csv(
        out["-traces.csv"],
        dict(zip(("matrix", "layer", "parameters", "trace", "standard_error"), zip(*traces, strict=True), strict=True)),
    )
    shares = [
        (b.matrix, b.layer, node, weight)
        for b, s in each
        for node, weight in zip(s.density.nodes, s.density.weights, strict=True)
    ]
    write_csv(
        out["-density.csv"], dict(zip(("matrix", "layer", "node", "weight"), zip(*shares, strict=True), strict=True))
    )
    arrays: dict[str, Any] = {}
    for b, s in each:
        at = f"{b.matrix}/{b.layer}"
        arrays |= {
            f"{at}/eigenvalues": s.values,
            f"{at}/trace": s.trace.value,
            f"{at}/trace_error": s.trace.error,
            f"{at}/density/nodes": s.density.nodes,
            f"{at}/density/weights": s.density.weights,
            f"{at}/density/width": s.density.width,
        }
        if args.vectors:
            arrays[f"{at}/eigenvectors"] = s.vectors.astype(np.float32)
    write_arrays(out[".h5"], arrays, notes)
    figure = f".{args.format}"
    draw_spectra({b.matrix: (s.values, s.density) for b, s in each if b.layer == WHOLE}, out[figure], args.at)
    if args.layers:
        inner = [(b, s) for b, s in each if b.layer != WHOLE]
        names = [b.layer for b, _ in inner if b.matrix == args.matrix[0]]
        tops = {m: np.array([s.values[0] for b, s in inner if b.matrix == m]) for m in args.matrix}
        means = {m: np.array([s.trace.value / b.size for b, s in inner if b.matrix == m]) for m in args.matrix}
        draw_layers(names, tops, means, out[f"-layers{figure}"])


def _write_edge(args: argparse.Namespace, out: dict[str, Path], along: Edge) -> None:
    write_csv(
        out["-edge.csv"],
        {
            "rank": along.rank,
            "iteration": along.iteration,
            "total_iteration": along.total_iteration,
            "sharpness": along.sharpness,
            "lr": along.lr,
            "limit": along.limit,
            "momentum_limit": along.momentum_limit,
        },
    )
    draw_edge(along, out[f"-edge.{args.format}"], f"{args.matrix[0]}, snapshots of the {args.along}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
