"""Objectives with known values, and runs of a small model as input of the landscape programs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lsam_hpc.landscape.objective import Objective
from lsam_hpc.trajectory import CountSketch, Snapshots, TrajectoryWriter
from tests.helpers.logs import attributes

LAYOUT = [("weight", (3, 4)), ("bias", (3,))]  # of `classifier`
SIZE = 15
SAMPLES, BATCH = 30, 8  # of `images`


class Free(nn.Module):
    """A model whose output is its parameters."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.w.expand(len(x), -1)


def function(f: Callable[[Tensor], Tensor], size: int, dtype: torch.dtype = torch.float64) -> Objective:
    """Return any function of a vector as an objective."""
    data = torch.zeros(4, 1)
    return Objective(Free(size, dtype), [(data, data)], lambda outputs, _: f(outputs[0]))


def quadratic(size: int = 6, seed: int = 0) -> tuple[Objective, np.ndarray, np.ndarray]:
    """Return f(x) = (x - c) H (x - c) / 2 with H and c."""
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((size, size))
    hessian, center = root @ root.T, rng.standard_normal(size)
    h, c = torch.from_numpy(hessian), torch.from_numpy(center)
    return function(lambda x: 0.5 * (x - c) @ h @ (x - c), size), hessian, center


# For --make-model and --make-batches: a linear classifier of 30 points in 4 dimensions.
def classifier() -> nn.Module:
    return nn.Linear(4, 3)


class Slow(nn.Linear):
    """A slow layer that writes one character per call to the file $LSAM_TEST_CALLS."""

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.01)
        with open(os.environ["LSAM_TEST_CALLS"], "a") as file:
            file.write("x")
        return super().forward(x)


def slow_classifier() -> nn.Module:
    return Slow(4, 3)


def other_classifier() -> nn.Module:
    return nn.Linear(5, 3)


class Single(nn.Linear):
    """A layer that computes in float32 whatever its type is."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def single_classifier() -> nn.Module:
    return Single(4, 3)


def wrong(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return a loss that is concave in a linear model's parameters."""
    return -nn.functional.cross_entropy(outputs, targets)


def far_is_nan(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return cross-entropy, NaN from a size of the outputs on that some of the runs' states have."""
    loss = nn.functional.cross_entropy(outputs, targets)
    return loss if float(outputs.detach().abs().max()) < 5 else loss * float("nan")


def diverging(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return cross-entropy, NaN once an output is large."""
    loss = nn.functional.cross_entropy(outputs, targets)
    return loss if float(outputs.detach().abs().max()) < 8 else loss * float("nan")


def images() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(SAMPLES, 4, generator=generator)
    y = torch.randint(3, (SAMPLES,), generator=generator)
    return list(zip(x.split(BATCH), y.split(BATCH), strict=True))


class Flat(nn.Linear):
    """A layer that takes images of 2 x 2 pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(1))


def image_classifier() -> nn.Module:
    return Flat(4, 3)


def square_images() -> list[tuple[Tensor, Tensor]]:
    return [(x.reshape(-1, 1, 2, 2), y) for x, y in images()]


def other_images() -> list[tuple[Tensor, Tensor]]:
    return [(x + 1, y) for x, y in images()]


def nothing() -> list[tuple[Tensor, Tensor]]:
    return []


# For --model and --data: a linear classifier of images, 24 to train and 16 to test.
def split_images(_: str | None) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((40, 1, 2, 2)).astype(np.float32), rng.integers(3, size=40)
    return x[:24], y[:24], x[24:], y[24:]


def flat_classifier(_: tuple[int, ...], classes: int) -> nn.Module:
    return Flat(4, classes)


def walks(ranks: int = 2, states: int = 6, seed: int = 0) -> np.ndarray:
    """Return the samples that `write_run` logs, shape (ranks, states, P)."""
    return np.random.default_rng(seed).standard_normal((ranks, states, SIZE)).cumsum(1).astype(np.float32) / 3


def write_run(
    path: Path, ranks: int = 2, states: int = 6, snapshots: bool = True, sketches: bool = False, seed: int = 0
) -> Path:
    """Write a run whose samples are `walks` and whose center is half of the rank's sample."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"rho": 0.1, "stiffness": 2.0}))
    more = {"snapshots": Snapshots()} if snapshots else {}
    if sketches:
        more["sketch"] = CountSketch(SIZE, buckets=32)
    samples = walks(ranks, states, seed)
    for rank, vectors in enumerate(samples):
        with TrajectoryWriter(path, rank, LAYOUT, attributes(ranks), **more) as writer:
            for i, vector in enumerate(vectors):
                writer.step(iteration=i, total_iteration=ranks * i + rank, loss=1 / (1 + i))
                writer.exchange(
                    began=float(i),
                    iteration=i,
                    version_read=i,
                    version_added=i,
                    staleness=0,
                    center_distance=0.5,
                    accepted=1,
                )
                for state, value in (("sample", vector), ("center", vector / 2)):
                    if snapshots:
                        writer.snapshot(state, value, i, i)
                    if sketches:
                        writer.sketch(state, writer.sketcher(value), i, i)
    return path


MODULE = "tests.helpers.landscapes"
SPLIT_WORDS = ("--model", f"{MODULE}:flat_classifier", "--data", f"{MODULE}:split_images")
WORDS = ("--make-model", f"{MODULE}:classifier", "--make-batches", f"{MODULE}:images")
