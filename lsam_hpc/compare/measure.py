"""Results of a training run, from its logs and its snapshots."""

from __future__ import annotations

import math
import typing
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lsam_hpc.compare.suite import Cell, Suite, snapshot_interval
from lsam_hpc.landscape.curvature.sharpness import sharpness
from lsam_hpc.landscape.curvature.spectrum import eigenpairs
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.states import state
from lsam_hpc.optim.accelerators import kind_of
from lsam_hpc.replay.bench import Point
from lsam_hpc.train import data
from lsam_hpc.train.builders import images_per_step, make_model, total_steps
from lsam_hpc.train.config import TrainConfig
from lsam_hpc.train.dataset import Dataset, batch_size
from lsam_hpc.train.evaluation import SUBSET, evaluate
from lsam_hpc.trajectory import Run

BATCH = 500  # images in an evaluation's batch
RHO = 0.05  # L2 radius of the worst-case sharpness


def interval(cell: Cell, points: int) -> int:
    """Return the local steps between snapshots of a cell's center that give a curve of `points` points."""
    config = _config(cell)
    period = typing.cast("int", config.period)  # a suite has no schedules
    return snapshot_interval(total_steps(config, load(config)), cell.ranks // config.group_size, points, period)


def measure(run_dir: Path, cell: Cell, suite: Suite) -> tuple[dict[str, Any], list[Point]]:
    """Return the final results of a run, and the curve of its center's error.

    Args:
        run_dir: directory of a run that ended.
        cell: the cell that was run.
        suite: its suite, which sets the numbers of images.
    """
    run, config = Run(run_dir), _config(cell)
    ends = [end for rank in run.ranks if (end := run.result(rank)) is not None]
    first = next(end for end in ends if not math.isnan(end["center_test_error"]))
    exchanges = sum(end["exchanges"] for end in ends)
    staleness_sum = sum(end["staleness_mean"] * end["exchanges"] for end in ends)
    seconds = max(end["seconds"] for end in ends)
    total = int(max(run.steps(rank)["total_iteration"].max() for rank in run.ranks)) + 1
    result = {
        **{name: first[name] for name in ("center_test_error", "center_train_loss")},
        "seconds": seconds,
        "total_steps": total,
        "images_per_second": total * images_per_step(config) / seconds,
        "staleness_mean": staleness_sum / exchanges if exchanges else 0.0,
        "refused": sum(end["refused"] for end in ends),
    }
    dataset = load(config).to(torch.device(kind_of(config.device)))
    curve = _curve(run, config, dataset, suite.curve_images)
    if suite.sharpness_images:
        result |= _flatness(run_dir, run, config, dataset, suite.sharpness_images)
    return result, curve


def _curve(run: Run, config: TrainConfig, dataset: Dataset, images: int) -> list[Point]:
    """Return the errors of rank 0's snapshots of the center, with BatchNorm statistics from training images."""
    snapshots, steps = run.snapshots(0, "center"), run.steps(0)
    began = steps["time"][0]
    objective = _objective(config, dataset, min(SUBSET, images))
    test_x, test_y = dataset.test_x[:images], dataset.test_y[:images]
    curve: list[Point] = []
    for index, (step, time) in enumerate(zip(snapshots["iteration"], snapshots["time"], strict=True)):
        row = min(int(np.searchsorted(steps["iteration"], step)), len(steps["iteration"]) - 1)
        with objective.at(torch.from_numpy(run.snapshot(0, index, "center"))) as model:
            _, error = evaluate(model, test_x, test_y)
        done = int(steps["total_iteration"][row])
        epochs = done * images_per_step(config) / len(dataset.train_y)
        elapsed = max(0.0, float(time - began))  # the initial state is logged before the first step ends
        curve.append({"epochs": epochs, "seconds": elapsed, "test_error": error})
    return curve


def _flatness(run_dir: Path, run: Run, config: TrainConfig, dataset: Dataset, images: int) -> dict[str, float]:
    """Return the sharpness of the final center and the largest eigenvalue of the Hessian there, on training images."""
    objective = _objective(config, dataset, images)
    center = objective.vector(state(run, str(run_dir / "checkpoints" / "center.pt")))
    values, _ = eigenpairs(objective, center, 1)
    worst = sharpness(objective, center, RHO, "worst", "l2", adaptive=False, normalise=False)
    return {"top_eigenvalue": float(values[0]), "sharpness": worst.value}


def _objective(config: TrainConfig, dataset: Dataset, images: int) -> Objective:
    x, y = dataset.train_x[:images], dataset.train_y[:images]
    model = make_model(config, dataset).to(y.device)
    size = min(BATCH, batch_size(y))
    return Objective(model, list(zip(x.split(size), y.split(size), strict=True)))


def _config(cell: Cell) -> TrainConfig:
    return TrainConfig(**cell.options, seed=cell.seed).together(cell.ranks)


def load(config: TrainConfig) -> Dataset:
    """Return the data set of a config, loaded once."""
    return _loaded(config.data, config.data_dir, *(getattr(config, name) for name in data.OPTIONS))


@cache
def _loaded(name: str, directory: str | None, *selection: Any) -> Dataset:  # noqa: ANN401
    return data.load(name, directory, **dict(zip(data.OPTIONS, selection, strict=True)))
