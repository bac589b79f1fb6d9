"""The edge of stability: the largest eigenvalue at a run's snapshots, and the stability limit 2 / lr.

Source: Cohen, Kaur, Li, Kolter and Talwalkar 2021, "Gradient Descent on Neural Networks Typically Occurs at the Edge of
Stability" (arXiv 2103.00065).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.curvature.spectrum import eigenpairs
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.workqueue import evaluate
from lsam_hpc.trajectory import Run
from lsam_hpc.trajectory.rows import Columns

if TYPE_CHECKING:
    from mpi4py import MPI


@dataclass(frozen=True)
class Edge:
    """Sharpness over training, one row per snapshot.

    Args:
        rank: rank that took the snapshot.
        iteration: number of the rank's steps before it.
        total_iteration: number of all ranks' steps before it; NaN where no step was logged.
        sharpness: largest eigenvalue of the matrix.
        lr: learning rate of the step that followed; NaN if unknown.
        momentum: heavy-ball momentum of the run.
    """

    rank: NDArray[np.int64]
    iteration: NDArray[np.int64]
    total_iteration: NDArray[np.float64]
    sharpness: NDArray[np.float64]
    lr: NDArray[np.float64]
    momentum: float = 0.0

    @property
    def limit(self) -> NDArray[np.float64]:
        """Sharpness above which gradient descent on a quadratic diverges: 2 / lr."""
        return 2 / self.lr

    @property
    def momentum_limit(self) -> NDArray[np.float64]:
        """The same limit with the run's momentum b: 2 (1 + b) / lr."""
        return (1 + self.momentum) * self.limit


def snapshots(run: Run, state: str = "sample", ranks: Sequence[int] | None = None) -> list[tuple[int, int]]:
    """Return (rank, row) of each snapshot of a state.

    Args:
        run: with snapshots.
        state: `"sample"` (default) or `"center"`.
        ranks: ranks whose snapshots are used. Default: all ranks for samples, the lowest rank for the center.

    Raises:
        InputError: there are no snapshots.
    """
    ranks = list(ranks if ranks is not None else run.ranks if state == "sample" else run.ranks[:1])
    table = f"snapshot/{state}"
    rows = [(rank, row) for rank in ranks if table in run.log(rank).tables for row in run.log(rank).whole(table)]
    if not rows:
        raise InputError(f"{run.path}: expected snapshots of the {state}, found none: train with --snapshot-every log")
    return rows


def edge(
    run: Run,
    objective: Objective,
    rows: Sequence[tuple[int, int]],
    state: str = "sample",
    *,
    matrix: str = "hessian",
    seed: int = 0,
    folder: Path | None = None,
    options: Mapping[str, Any] | None = None,
    comm: MPI.Intracomm | None = None,
    title: str | None = None,
) -> Edge:
    """Return the sharpness of a run's snapshots.

    Args:
        run: with snapshots.
        objective: f on fixed data.
        rows: (rank, row) of the snapshots, as `snapshots` returns them.
        state: `"sample"` (default) or `"center"`.
        matrix: `"hessian"` (default) or `"ggn"`.
        seed: of the start vectors.
        folder: see `workqueue.evaluate`, also for the arguments that follow.
        options: see there.
        comm: see there.
        title: see there.

    Raises:
        InputError: a snapshot is damaged, the folder holds values of other options, or `eigenpairs` raises it.
    """

    def work(index: int) -> list[float]:
        rank, row = rows[index]
        x = objective.vector(run.snapshot(rank, row, state))
        try:
            return [eigenpairs(objective, x, 1, matrix, seed=seed)[0][0]]
        except InputError as error:
            raise InputError(f"{run.path}: {state} of rank {rank} at step {steps[index]}: {error}") from error

    steps = [int(run.snapshots(rank, state)["iteration"][row]) for rank, row in rows]
    sharpness = evaluate(work, len(rows), 1, folder, options, comm=comm, title=title)[:, 0]
    ranks = np.array([rank for rank, _ in rows], np.int64)
    after = [_step(run.steps(rank), step) for (rank, _), step in zip(rows, steps, strict=True)]
    total, lr = np.array(after, np.float64).reshape(-1, 2).T
    momentum = run.config.get("momentum")
    return Edge(
        ranks,
        np.array(steps, np.int64),
        total,
        sharpness,
        lr,
        float(momentum) if isinstance(momentum, (int, float)) else 0.0,
    )


def _step(steps: Columns, iteration: int) -> tuple[float, float]:
    """Return the total step and the learning rate of the step after `iteration` steps of a rank, or of its last."""
    if not len(steps["iteration"]):
        return np.nan, np.nan
    at = min(int(np.searchsorted(steps["iteration"], iteration)), len(steps["iteration"]) - 1)
    return float(steps["total_iteration"][at]), float(steps["lr"][at])
