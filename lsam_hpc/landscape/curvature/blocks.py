"""Spectra of the whole matrix and of layers' blocks, as jobs that ranks share and of which a kill loses none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.curvature import spectral_density, trace
from lsam_hpc.landscape.curvature.products import curvature
from lsam_hpc.landscape.curvature.spectral_density import Density
from lsam_hpc.landscape.curvature.spectrum import eigenpairs
from lsam_hpc.landscape.curvature.trace import Trace
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.workqueue import evaluate
from lsam_hpc.util.files import atomic_path

if TYPE_CHECKING:
    from mpi4py import MPI

EIGENVALUES, SMALLEST, TRACE, DENSITY = KINDS = ("eigenvalues", "smallest", "trace", "density")
ALL = "all"  # the samples that are not divided into classes


class Block(NamedTuple):
    """A matrix, or the diagonal block of one layer, and what to compute of it; of all samples or of one class."""

    matrix: str
    layer: str
    size: int
    params: list[int] | None
    kinds: tuple[str, ...] = KINDS
    group: str = ALL


class Spectrum(NamedTuple):
    """The spectrum of a block; what was not asked for is empty or None."""

    values: NDArray[np.float64]
    vectors: NDArray[np.float32]
    trace: Trace | None
    density: Density | None
    smallest: NDArray[np.float64]

    @property
    def ratio(self) -> float:
        """The smallest eigenvalue divided by the largest, with the sign changed; NaN if one was not asked for."""
        if not (len(self.values) and len(self.smallest) and self.values[0]):
            return math.nan
        return -float(self.smallest[0] / self.values[0])


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
        smallest: how many eigenvalues, the smallest. Default: 1.

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

    A job is eigenvalues of a block at one end, or one of its trace's or its density's random estimates.

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
    jobs = [job for index, block in enumerate(blocks) for job in _jobs(index, block, settings)]
    widths = {EIGENVALUES: settings.eigenvalues, SMALLEST: settings.smallest, TRACE: 1, DENSITY: 2 * settings.steps}
    groups = {ALL: objective, **(classes or {})}
    width = max((widths[job.kind] for job in jobs), default=1)

    def work(index: int) -> list[float]:
        job = jobs[index]
        block = blocks[job.block]
        numbers = _numbers(groups[block.group], x, block, job, settings, folder=folder)
        return [*numbers, *[np.nan] * (width - len(numbers))]

    table = evaluate(work, len(jobs), width, folder, options, comm=comm, title=title)
    rows: dict[tuple[int, str], list[NDArray[np.float64]]] = {}
    for job, row in zip(jobs, table, strict=True):
        rows.setdefault((job.block, job.kind), []).append(row[:1] if job.kind == TRACE else row[~np.isnan(row)])

    def collect() -> list[Spectrum]:
        read = folder if settings.vectors and (comm is None or comm.rank == 0) else None
        return [_spectrum(index, rows, read) for index in range(len(blocks))]

    if comm is None:
        return collect()
    from lsam_hpc.rma import raise_on_all

    return raise_on_all(comm, collect)


def _jobs(index: int, block: Block, settings: Settings) -> list[_Job]:
    once = trace.is_exact(block.size, settings.products)
    counts = {EIGENVALUES: 1, SMALLEST: 1, TRACE: 1 if once else settings.repeats, DENSITY: settings.repeats}
    return [_Job(index, kind, repeat) for kind in KINDS if kind in block.kinds for repeat in range(counts[kind])]


def _numbers(
    objective: Objective, x: Tensor, block: Block, job: _Job, settings: Settings, *, folder: Path | None
) -> list[float]:
    """Return the results of a job; write the eigenvectors into the folder."""
    if job.kind == EIGENVALUES:
        k = min(settings.eigenvalues, block.size)
        values, vectors = eigenpairs(
            objective, x, k, block.matrix, seed=settings.seed, params=block.params, check=False
        )
        if settings.vectors and folder:
            path = _vectors(folder, job.block)
            path.unlink(missing_ok=True)
            with atomic_path(path) as part, part.open("wb") as file:
                np.save(file, vectors.astype(np.float32))
        return list(values)
    if job.kind == SMALLEST:
        k = min(settings.smallest, block.size)
        options: dict[str, Any] = {"seed": settings.seed, "params": block.params, "check": False}
        return list(eigenpairs(objective, x, k, block.matrix, end="smallest", **options)[0])
    with curvature(objective, x, block.matrix, block.params, check=False) as operator:
        if job.kind == TRACE:
            return [trace.estimate(operator, settings.products, seed=settings.seed, repeat=job.repeat)]
        part_density = spectral_density.quadrature(operator, settings.steps, seed=settings.seed, repeat=job.repeat)
        return [*part_density.nodes, *part_density.weights]


def _spectrum(index: int, rows: Mapping[tuple[int, str], list[NDArray[np.float64]]], folder: Path | None) -> Spectrum:
    values, smallest, estimates, parts = (rows.get((index, kind), []) for kind in KINDS)
    vectors = np.empty((0, 0), np.float32)
    if folder and values:
        path = _vectors(folder, index)
        try:
            vectors = np.load(path)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: expected eigenvectors, found: {error}; remove {folder}") from error
    return Spectrum(
        values[0] if values else np.empty(0),
        vectors,
        trace.mean([float(row[0]) for row in estimates]) if estimates else None,
        spectral_density.mean([Density(*row.reshape(2, -1)) for row in parts]) if parts else None,
        smallest[0] if smallest else np.empty(0),
    )


def _vectors(folder: Path, index: int) -> Path:
    return folder / f"vectors-{index:04d}.npy"
