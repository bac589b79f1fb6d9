"""`lsam spectrum RUN`: eigenvalues, trace and spectral density of Hessian and Gauss-Newton matrix."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lsam_hpc.tools import source
from lsam_hpc.tools.jobs import share
from lsam_hpc.tools.ranks import Ranks, about, add_ranks, set_threads
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.cohen2021 import Edge, edge, joined, snapshots
from lsam_hpc.landscape.curvature import MATRICES, curvature, layers
from lsam_hpc.landscape.draw_curvature import draw_edge, draw_layers, draw_spectra
from lsam_hpc.landscape.meyer2021 import Trace, trace
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.spectrum import eigenpairs
from lsam_hpc.landscape.states import SYNTAX, state
from lsam_hpc.landscape.tables import places, write_arrays, write_csv
from lsam_hpc.landscape.ubaru2017 import Density, density
from lsam_hpc.text import columns
from lsam_hpc.trajectory import Run

WHOLE = "all"  # name of the block that is the whole matrix


class Block(NamedTuple):
    """A matrix, or a layer's diagonal block of it."""

    matrix: str
    layer: str
    size: int
    params: list[int] | None


class Found(NamedTuple):
    """Its spectrum."""

    values: NDArray[np.float64]
    vectors: NDArray[np.float64]
    trace: Trace
    density: Density


def main(argv: Sequence[str]) -> int:
    """Compute, print, write and draw; return the exit code."""
    ranks = Ranks()
    given, run, objective = ranks.agree(lambda: _begin(argv))
    out = ranks.once(lambda: places(source.folder(given, run), given.name or f"spectrum-{_file(given.at)}",
                                    _suffixes(given), given.overwrite))  # fmt: skip
    x = ranks.agree(lambda: objective.vector(state(run, given.at)))
    ranks.agree(lambda: _check(objective, x, given.matrix))
    title = None if given.quiet else "lsam spectrum"
    blocks = [
        Block(matrix, name, size, params) for matrix in given.matrix for name, size, params in _parts(given, objective)
    ]
    found = share(ranks, [_job(given, objective, x, block) for block in blocks], title)
    along: Edge | None = None
    if given.along:
        rows = ranks.agree(lambda: snapshots(run, given.along))
        jobs = [lambda row=row: edge(run, objective, [row], given.along, given.matrix[0], given.seed) for row in rows]
        along = joined(share(ranks, jobs, title and "lsam spectrum, snapshots"))
    if ranks.first:
        print(_table(blocks, found))
        _write(given, out, blocks, found, {"at": given.at, "seed": given.seed, **about(given, objective)})
        if along is not None:
            _write_edge(given, out, along)
        print("\n" + "\n".join(str(path) for path in out.values()))
    return 0


def _begin(argv: Sequence[str]) -> tuple[argparse.Namespace, Run, Objective]:
    given = _parser().parse_args(argv)
    given.matrix = given.matrix.split(",")
    for name in given.matrix:
        if name not in MATRICES:
            raise InputError(f"--matrix: expected some of {', '.join(MATRICES)}, found {name!r}")
    for name, least in (("eigenvalues", 1), ("steps", 1), ("repeats", 2)):
        if getattr(given, name) < least:
            raise InputError(f"--{name}: expected {least} or more, found {getattr(given, name)}")
    set_threads(given)
    run = Run(given.run, partial=given.partial)
    if given.along:
        snapshots(run, given.along)
    return given, run, source.objective(given, run)


def _parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = source.parser(
        "spectrum",
        "Compute the largest eigenvalues, the trace and the spectral density of the Hessian and the Gauss-Newton "
        "matrix of the loss at a state; with --along the largest eigenvalue of every snapshot, beside 2 / lr.",
    )
    parser.add_argument("--at", default="center", metavar="STATE", help=f"{SYNTAX} (default: center)")
    parser.add_argument("--matrix", default="hessian,ggn", help="some of hessian, ggn (default: both)")
    parser.add_argument("--eigenvalues", type=int, default=10, metavar="K", help="how many, the largest (default: 10)")
    parser.add_argument("--layers", action="store_true", help="of each layer's diagonal block too")
    parser.add_argument("--along", choices=("sample", "center"), help="of every snapshot of it, with the first matrix")
    parser.add_argument("--vectors", action="store_true", help="write the eigenvectors too, into the HDF5 file")
    group = parser.add_argument_group("estimates")
    group.add_argument("--steps", type=int, default=80, help="of Lanczos, for the density (default: 80)")
    group.add_argument("--repeats", type=int, default=10, help="random vectors for the density, and estimates of the "
                       "trace (default: 10)")  # fmt: skip
    group.add_argument("--products", type=int, default=30, help="for an estimate of the trace, a multiple of 3 "
                       "(default: 30)")  # fmt: skip
    group.add_argument("--seed", type=int, default=0, help="of random vectors (default: 0)")
    parser.add_argument("--name", help="of the files (default: spectrum-STATE)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    source.add_objective(parser)
    add_ranks(parser)
    return parser


def _check(objective: Objective, x: Tensor, matrices: Sequence[str]) -> None:
    """Raise InputError if a product with a matrix is not finite or not the same twice."""
    for matrix in matrices:
        with curvature(objective, x, matrix):
            pass


def _parts(given: argparse.Namespace, objective: Objective) -> list[tuple[str, int, list[int] | None]]:
    found: list[tuple[str, int, list[int] | None]] = [(WHOLE, objective.size, None)]
    if given.layers:
        sizes = [p.numel() for p in objective.params]
        found += [(name, sum(sizes[i] for i in params), params) for name, params in layers(objective).items()]
    return found


def _job(given: argparse.Namespace, objective: Objective, x: Tensor, block: Block) -> Callable[[], Found]:
    def work() -> Found:
        options: dict[str, Any] = {"matrix": block.matrix, "seed": given.seed, "params": block.params, "check": False}
        k = min(given.eigenvalues, block.size)
        values, vectors = eigenpairs(objective, x, k, **options)
        return Found(
            values,
            vectors if given.vectors else vectors[:0],
            trace(objective, x, products=given.products, repeats=given.repeats, **options),
            density(objective, x, steps=given.steps, repeats=given.repeats, **options),
        )

    return work


def _table(blocks: Sequence[Block], found: Sequence[Found]) -> str:
    rows = [("matrix", "layer", "parameters", "largest", "second", "trace", "+-", "smallest node")]
    for block, own in zip(blocks, found, strict=True):
        rows.append((
            block.matrix, block.layer, f"{block.size:,}", f"{own.values[0]:.5g}",
            f"{own.values[1]:.5g}" if len(own.values) > 1 else "-", f"{own.trace.value:.5g}", f"{own.trace.error:.2g}",
            f"{own.density.nodes[0]:.4g}",
        ))  # fmt: skip
    return columns(rows)


def _suffixes(given: argparse.Namespace) -> list[str]:
    figure = f".{given.format}"
    return [
        figure, ".h5", "-eigenvalues.csv", "-traces.csv", "-density.csv",
        *([f"-layers{figure}"] if given.layers else []),
        *([f"-edge{figure}", "-edge.csv"] if given.along else []),
    ]  # fmt: skip


def _write(
    given: argparse.Namespace,
    out: dict[str, Path],
    blocks: Sequence[Block],
    found: Sequence[Found],
    notes: dict[str, Any],
) -> None:
    each = list(zip(blocks, found, strict=True))
    eigenvalues = [(b.matrix, b.layer, i + 1, value) for b, own in each for i, value in enumerate(own.values)]
    write_csv(out["-eigenvalues.csv"], dict(zip(("matrix", "layer", "number", "eigenvalue"),
                                                zip(*eigenvalues, strict=True), strict=True)))  # fmt: skip
    traces = [(b.matrix, b.layer, b.size, own.trace.value, own.trace.error) for b, own in each]
    write_csv(out["-traces.csv"], dict(zip(("matrix", "layer", "parameters", "trace", "standard_error"),
                                           zip(*traces, strict=True), strict=True)))  # fmt: skip
    shares = [(b.matrix, b.layer, node, weight) for b, own in each
              for node, weight in zip(own.density.nodes, own.density.weights, strict=True)]  # fmt: skip
    write_csv(
        out["-density.csv"], dict(zip(("matrix", "layer", "node", "weight"), zip(*shares, strict=True), strict=True))
    )
    arrays: dict[str, Any] = {}
    for b, own in each:
        at = f"{b.matrix}/{b.layer}"
        arrays |= {
            f"{at}/eigenvalues": own.values, f"{at}/trace": own.trace.value, f"{at}/trace_error": own.trace.error,
            f"{at}/density/nodes": own.density.nodes, f"{at}/density/weights": own.density.weights,
            f"{at}/density/width": own.density.width,
        }  # fmt: skip
        if given.vectors:
            arrays[f"{at}/eigenvectors"] = own.vectors.astype(np.float32)
    write_arrays(out[".h5"], arrays, notes)
    figure = f".{given.format}"
    draw_spectra({b.matrix: (own.values, own.density) for b, own in each if b.layer == WHOLE}, out[figure], given.at)
    if given.layers:
        inner = [(b, own) for b, own in each if b.layer != WHOLE]
        names = [b.layer for b, _ in inner if b.matrix == given.matrix[0]]
        tops = {m: np.array([own.values[0] for b, own in inner if b.matrix == m]) for m in given.matrix}
        means = {m: np.array([own.trace.value / b.size for b, own in inner if b.matrix == m]) for m in given.matrix}
        draw_layers(names, tops, means, out[f"-layers{figure}"])


def _write_edge(given: argparse.Namespace, out: dict[str, Path], along: Edge) -> None:
    write_csv(out["-edge.csv"], {
        "rank": along.rank, "iteration": along.iteration, "total_iteration": along.total_iteration,
        "sharpness": along.sharpness, "lr": along.lr, "limit": along.limit, "momentum_limit": along.momentum_limit,
    })  # fmt: skip
    draw_edge(along, out[f"-edge.{given.format}"], f"{given.matrix[0]}, snapshots of the {given.along}")


def _file(name: str) -> str:
    return Path(name).stem if name.endswith((".pt", ".pth")) else name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
