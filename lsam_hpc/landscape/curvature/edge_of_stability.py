"""The edge of stability: sharpness at a run's snapshots, and the limits above which training diverges.

Sources: Cohen, Kaur, Li, Kolter and Talwalkar 2021, "Gradient Descent on Neural Networks Typically Occurs at the Edge
of Stability" (arXiv 2103.00065); Agarwala and Dauphin 2023, "SAM operates far from home: eigenvalue regularization as a
dynamical phenomenon" (arXiv 2302.08692).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.workqueue import evaluate
from lsam_hpc.trajectory import Run
from lsam_hpc.trajectory.rows import Columns

if TYPE_CHECKING:
    from mpi4py import MPI

    from lsam_hpc.landscape.objective import Objective

_VALUES = ("sharpness", "update_sharpness", "gradient_sharpness", "flow_sharpness")  # of a snapshot


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Sharpness above which gradient descent on a quadratic diverges.

    Args:
        total_iteration: number of all ranks' steps before, shape (n,); NaN where no step was logged.
        lr: learning rate of the step that followed, shape (n,); NaN if unknown.
        ratio: length of that step's ascent divided by the norm of its gradient, r = rho / |g|, shape (n,); NaN if it is
            unknown, or the run's ascent is not SAM's along the whole gradient.
        momentum: heavy-ball momentum b of the run.
    """

    total_iteration: NDArray[np.float64]
    lr: NDArray[np.float64]
    ratio: NDArray[np.float64]
    momentum: float

    @property
    def limit(self) -> NDArray[np.float64]:
        """The limit of gradient descent: 2 / lr."""
        return 2 / self.lr

    @property
    def momentum_limit(self) -> NDArray[np.float64]:
        """The same limit with momentum: 2 (1 + b) / lr."""
        return (1 + self.momentum) * self.limit

    @property
    def sam_limit(self) -> NDArray[np.float64]:
        """The limit of SAM with momentum: (sqrt(1 + 8 (1 + b) r / lr) - 1) / (2 r).

        After an ascent r g the gradient is (1 + r h) times as large along an eigenvector of eigenvalue h, so that
        h (1 + r h) takes the place of h. With b = 0 it is Agarwala and Dauphin's.
        """
        # The form that remains exact when r is 0.
        limit: NDArray[np.float64] = 2 * self.momentum_limit / (1 + np.sqrt(1 + 4 * self.ratio * self.momentum_limit))
        return limit


@dataclass(frozen=True, kw_only=True)
class Edge(Limits):
    """Sharpness over training, and the limits, one row per snapshot.

    Args:
        rank: rank that took the snapshot.
        iteration: number of the rank's steps before it.
        sharpness: largest eigenvalue of the matrix.
        update_sharpness: directional sharpness of the update to the rank's next snapshot; NaN if there is none, or the
            state did not move.
        gradient_sharpness: directional sharpness of the gradient of f over all data; NaN if it is 0.
        flow_sharpness: that of the gradient flow's solution from the snapshot, see `gradient_flow`; NaN if it did not
            converge, or was not asked for.
        logged: limits at the logged steps of these ranks, in the order of all ranks' steps.
    """

    rank: NDArray[np.int64]
    iteration: NDArray[np.int64]
    sharpness: NDArray[np.float64]
    update_sharpness: NDArray[np.float64]
    gradient_sharpness: NDArray[np.float64]
    flow_sharpness: NDArray[np.float64]
    logged: Limits


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
    flow: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    options: Mapping[str, Any] | None = None,
    comm: MPI.Intracomm | None = None,
    title: str | None = None,
) -> Edge:
    """Return the sharpness of a run's snapshots, and their directional sharpness.

    Args:
        run: with snapshots.
        objective: f on fixed data.
        rows: (rank, row) of the snapshots, as `snapshots` returns them: each rank's in the order of its steps.
        state: `"sample"` (default) or `"center"`.
        matrix: `"hessian"` (default) or `"ggn"`.
        seed: of the start vectors.
        flow: options of `gradient_flow`. Default: the flow is not integrated.
        folder: see `workqueue.evaluate`, also for the arguments that follow.
        options: see there.
        comm: see there.
        title: see there.

    Raises:
        InputError: a snapshot is damaged, the folder holds values of other options, or `eigenpairs` raises it.
    """

    # These import torch, which `Edge` and its figure do not need.
    import torch

    from lsam_hpc.landscape.curvature.directional import directional_sharpness
    from lsam_hpc.landscape.curvature.gradient_flow import gradient_flow
    from lsam_hpc.landscape.curvature.spectrum import eigenpairs

    def work(index: int) -> list[float]:
        """Return the values of a snapshot, in the order of `_VALUES`."""
        rank, row = rows[index]
        x = objective.vector(run.snapshot(rank, row, state))
        try:
            top = eigenpairs(objective, x, 1, matrix, seed=seed)[0][0]
            later = next((later for its_rank, later in rows[index + 1 :] if its_rank == rank), row)
            update = objective.vector(run.snapshot(rank, later, state)) - x
            along = torch.stack([update, objective.gradient(x)[1]])
            reached = math.nan if flow is None else gradient_flow(objective, x, seed=seed, **flow).sharpness
            return [top, *directional_sharpness(objective, x, along, matrix, check=False), reached]
        except InputError as error:
            raise InputError(f"{run.path}: {state} of rank {rank} at step {steps[index]}: {error}") from error

    steps = [int(run.snapshots(rank, state)["iteration"][row]) for rank, row in rows]
    table = evaluate(work, len(rows), len(_VALUES), folder, options, comm=comm, title=title)
    of_rows = [(rank, step) for (rank, _), step in zip(rows, steps, strict=True)]
    return Edge(**dict(zip(_VALUES, table.T, strict=True)), **_around(run, of_rows))


def measured(run: Run) -> Edge:
    """Return the sharpness that a run measured while it trained (`lsam train --curvature-every`), without computing.

    Raises:
        InputError: it measured none, or a log is damaged.
    """
    tables = {rank: run.log(rank).table("curvature") for rank in run.ranks if "curvature" in run.log(rank).tables}
    rows = [(rank, int(step)) for rank, table in tables.items() for step in table["iteration"]]
    if not rows:
        raise InputError(f"{run.path}: expected a measured curvature, found none: train with --curvature-every 100")
    values: dict[str, Any] = dict.fromkeys(_VALUES, np.full(len(rows), np.nan))
    values["sharpness"] = np.concatenate([t["eigenvalue"] for t in tables.values()])
    return Edge(**values, **_around(run, rows))


def _around(run: Run, rows: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return the fields of `Edge` that do not depend on the sharpness, at the local steps of ranks."""
    ranks = sorted({rank for rank, _ in rows})
    steps = {rank: run.steps(rank) for rank in ranks}
    logged = {rank: _limits(run, rank) for rank in ranks}
    after = [_after(steps[rank], logged[rank], step) for rank, step in rows]
    total, lr, ratio = np.array(after, np.float64).reshape(-1, 3).T
    every = np.concatenate([logged[rank] for rank in ranks], 1)
    every = every[:, np.argsort(every[0], kind="stable")]
    momentum = run.config.get("momentum")
    momentum = float(momentum) if isinstance(momentum, (int, float)) else 0.0
    return {
        "rank": np.array([rank for rank, _ in rows], np.int64),
        "iteration": np.array([step for _, step in rows], np.int64),
        "total_iteration": total,
        "lr": lr,
        "ratio": ratio,
        "momentum": momentum,
        "logged": Limits(total_iteration=every[0], lr=every[1], ratio=every[2], momentum=momentum),
    }


def _limits(run: Run, rank: int) -> NDArray[np.float64]:
    """Return total step, learning rate and rho / |g| of each of a rank's logged steps, shape (3, steps)."""
    steps, config = run.steps(rank), run.config
    ratio = np.full(len(steps["lr"]), np.nan)
    if (config.get("ascent"), config.get("metric"), config.get("mask")) == ("sam", "l2", "all"):
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = steps["perturbation_norm"].astype(np.float64) / steps["grad_norm"]
        ratio[~np.isfinite(ratio)] = np.nan
    return np.stack([steps["total_iteration"], steps["lr"], ratio]).astype(np.float64)


def _after(steps: Columns, logged: NDArray[np.float64], iteration: int) -> NDArray[np.float64]:
    """Return what was logged at the step after `iteration` steps of a rank, or at its last."""
    if not logged.shape[1]:
        return np.full(3, np.nan)
    return logged[:, min(int(np.searchsorted(steps["iteration"], iteration)), logged.shape[1] - 1)]
