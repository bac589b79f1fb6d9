"""Spectra of the whole matrix and of layers' blocks, as jobs that ranks share and of which a kill loses none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.curvature import spectral_density, trace
from lsam_hpc.landscape.curvature.products import Operator, curvature
from lsam_hpc.landscape.curvature.results import ALL, DENSITY, EIGENVALUES, KINDS, SMALLEST, TRACE, Spectrum
from lsam_hpc.landscape.curvature.spectral_density import Density
from lsam_hpc.landscape.curvature.spectrum import extremes, shares_quadrature
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.workqueue import evaluate
from lsam_hpc.util.files import atomic_path

if TYPE_CHECKING:
    from mpi4py import MPI


class Block(NamedTuple):
    """A matrix, or the diagonal block of one layer, and what to compute of it; of all samples or of one class."""

    matrix: str
    layer: str
    size: int
    params: list[int] | None
    kinds: tuple[str, ...] = KINDS
    group: str = ALL


@dataclass(frozen=True)
class Settings:
    """How exactly to compute.

    Args:
        eigenvalues: how many, the largest. Default: 10.
        steps: Lanczos steps for the density. Default: 80.
        repeats: random vectors for the density, and estimates of the trace. Default: 4.
        products: matrix-vector products for a trace estimate, a multiple of 3. Default: 30.
        seed: of random vectors. Default: 0.
        vectors: keep the eigenvectors of the largest. Default: False.
        smallest: how many eigenvalues of blocks whose kinds have `SMALLEST`, the smallest. Default: 1.

    Raises:
        InputError: a number is out of range.
    """

    eigenvalues: int = 10
    steps: int = 80
    repeats: int = 4
    products: int = 30
    seed: int = 0
    vectors: bool = False
    smallest: int = 1

    def __post_init__(self) -> None:
        for name in ("eigenvalues", "smallest", "steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: expected 1 or more, found {getattr(self, name)}")
        trace.check_numbers(self.products, self.repeats)


class _Job(NamedTuple):
    block: int
    kind: str
    repeat: int = 0


def spectra(
    objective: Objective,
    x: Tensor,
    blocks: Sequence[Block],
    settings: Settings,
    *,
    classes: Mapping[str, Objective] | None = None,
    folder: Path | None = None,
    options: Mapping[str, Any] | None = None,
    comm: MPI.Intracomm | None = None,
    title: str | None = None,
) -> list[Spectrum]:
    """Return the spectra of blocks at a point. The eigenvectors are on rank 0 only.

    A job is the eigenvalues of a block at both ends, with the first random estimate of its density, or another random
    estimate of its density or its trace. The graphs of a block are kept from job to job.

    Args:
        objective: f on fixed data.
        x: the point, shape (P,); see `curvature` for checks, which are not repeated here.
        blocks: matrices or diagonal blocks.
        settings: how exactly to compute.
        classes: the objectives of blocks whose group is a class, see `Objective.of_classes`.
        folder: see `workqueue.evaluate`, also for the arguments that follow. Needed for eigenvectors.
        options: see there.
        comm: see there.
        title: see there.

    Raises:
        InputError: the iteration for eigenvalues does not converge, or the folder holds results of other options.
    """
    jobs = [job for index, block in enumerate(blocks) for job in _jobs(index, block, settings, objective.dtype)]
    groups = {ALL: objective, **(classes or {})}
    widths = {EIGENVALUES: settings.eigenvalues, SMALLEST: settings.smallest, TRACE: 1}
    widths |= {"nodes": settings.steps, "weights": settings.steps}
    ends = np.cumsum(list(widths.values()))

    with ExitStack() as stack:
        of_block: dict[int, Operator] = {}  # of the last job

        def work(index: int) -> list[float]:
            job = jobs[index]
            block = blocks[job.block]
            if job.block not in of_block:
                stack.close()
                of_block.clear()
                opened = curvature(groups[block.group], x, block.matrix, block.params, check=False)
                of_block[job.block] = stack.enter_context(opened)
            numbers = _numbers(of_block[job.block], block, job, settings, folder)
            filled = ([*numbers.get(name, ()), *[np.nan] * width][:width] for name, width in widths.items())
            return [number for numbers in filled for number in numbers]

        table = evaluate(work, len(jobs), int(ends[-1]), folder, options, comm=comm, title=title)
    rows: list[list[dict[str, NDArray[np.float64]]]] = [[] for _ in blocks]
    for job, row in zip(jobs, table, strict=True):
        parts = zip(widths, np.split(row, ends[:-1]), strict=True)
        rows[job.block].append({name: part[~np.isnan(part)] for name, part in parts})

    def collect() -> list[Spectrum]:
        read = folder if settings.vectors and (comm is None or comm.rank == 0) else None
        return [_spectrum(index, of_block, read) for index, of_block in enumerate(rows)]

    if comm is None:
        return collect()
    from lsam_hpc.rma import raise_on_all

    return raise_on_all(comm, collect)


def _jobs(index: int, block: Block, settings: Settings, dtype: torch.dtype) -> list[_Job]:
    ends = bool({EIGENVALUES, SMALLEST} & set(block.kinds))
    traces = 0 if TRACE not in block.kinds else 1 if trace.is_exact(block.size, settings.products) else settings.repeats
    first = int(ends and shares_quadrature(block.size, dtype, sum(_wanted(block, settings)), settings.steps))
    densities = range(first, settings.repeats if DENSITY in block.kinds else 0)
    jobs = [_Job(index, EIGENVALUES)] * ends
    return jobs + [_Job(index, TRACE, i) for i in range(traces)] + [_Job(index, DENSITY, i) for i in densities]


def _wanted(block: Block, settings: Settings) -> tuple[int, int]:
    """Return how many eigenvalues of a block are computed, the largest and the smallest."""
    counts = {EIGENVALUES: settings.eigenvalues, SMALLEST: settings.smallest}
    largest, smallest = (min(count, block.size) * (kind in block.kinds) for kind, count in counts.items())
    return largest, smallest


def _numbers(operator: Operator, block: Block, job: _Job, settings: Settings, folder: Path | None) -> dict[str, Any]:
    """Return the results of a job; write the eigenvectors into the folder."""
    if job.kind == TRACE:
        return {TRACE: [trace.estimate(operator, settings.products, seed=settings.seed, repeat=job.repeat)]}
    if job.kind == DENSITY:
        density = spectral_density.quadrature(operator, settings.steps, seed=settings.seed, repeat=job.repeat)
        return {"nodes": density.nodes, "weights": density.weights}
    steps = settings.steps if DENSITY in block.kinds else 0
    ends = extremes(operator, *_wanted(block, settings), seed=settings.seed, steps=steps)
    if settings.vectors and folder:
        path = _vectors(folder, job.block)
        path.unlink(missing_ok=True)
        with atomic_path(path) as part, part.open("wb") as file:
            np.save(file, ends.vectors.astype(np.float32))
    numbers = {EIGENVALUES: ends.largest, SMALLEST: ends.smallest}
    return numbers | ({"nodes": ends.density.nodes, "weights": ends.density.weights} if ends.density else {})


def _spectrum(index: int, rows: Sequence[Mapping[str, NDArray[np.float64]]], folder: Path | None) -> Spectrum:
    def joined(name: str) -> NDArray[np.float64]:
        return np.concatenate([np.empty(0), *(row[name] for row in rows)])

    vectors = np.empty((0, 0), np.float32)
    if folder and len(joined(EIGENVALUES)):
        path = _vectors(folder, index)
        try:
            vectors = np.load(path)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: expected eigenvectors, found: {error}; remove {folder}") from error
    traces = joined(TRACE).tolist()
    parts = [Density(row["nodes"], row["weights"]) for row in rows if len(row["nodes"])]
    return Spectrum(
        joined(EIGENVALUES),
        vectors,
        trace.mean(traces) if traces else None,
        spectral_density.mean(parts) if parts else None,
        joined(SMALLEST),
    )


def _vectors(folder: Path, index: int) -> Path:
    return folder / f"vectors-{index:04d}.npy"
