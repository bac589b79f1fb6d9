"""`lsam bench train`: images per second of `lsam train` against a bare PyTorch loop."""

from __future__ import annotations

import io
import math
import signal
import statistics
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import product
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from lsam_hpc.errors import InputError
from lsam_hpc.tools.bench.base import Report, Row, aim, caption, counted, device_of, markdown, wait_for
from lsam_hpc.train import loop
from lsam_hpc.train.models import MODELS
from lsam_hpc.trajectory import Run

TITLE = "The training loop"
CASES = (("mlp", 32), ("mlp", 256), ("cnn", 32), ("cnn", 128))
GPU_CASES = (("cnn", 128), ("resnet18", 128))
SECONDS = 1.0  # approximate duration of a turn
IMAGES = 1536  # few, because lsam train evaluates on them at its end
SHAPE, CLASSES = (1, 28, 28), 10
LR, MOMENTUM, WEIGHT_DECAY, RHO = 0.1, 0.9, 5e-4, 0.05  # lsam train's defaults
OURS, BARE, RATIO = "lsam train, images/s", "bare loop, images/s", "lsam train : bare"
ALONE = ("--rho", "0", "--pull", "0", "--period", "1000000000")  # the base optimizer alone


def measure(repeats: int, *, quick: bool) -> list[Row]:
    """Return a row per model, batch and method; see `base.Benchmark`.

    Ours is `lsam train` on one rank with its default logs, in the seconds that it reports from its first step to its
    last. The bare loop has the same model, data in memory, shuffled mini-batches and optimizer. SGD is `lsam train`
    without ascent and exchanges; LSAM with its defaults is compared with a bare SAM of two passes without a center. The
    images are noise in the format of Fashion-MNIST. The loops take turns, on a GPU if there is one.
    """
    device = device_of()
    cases = CASES if device.type == "cpu" else GPU_CASES
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _write_images(folder)
        x, y = torch.randn(IMAGES, *SHAPE, device=device), torch.randint(CLASSES, (IMAGES,), device=device)
        methods = (("SGD", ALONE, _sgd_step), ("LSAM", (), _sam_step))
        for (model, batch), (method, options, step) in counted(list(product(cases[:1] if quick else cases, methods))):
            bare = _bare(MODELS[model](SHAPE, CLASSES).to(device), x, y, batch, step)
            words = ("--model", model, "--batch-size", str(batch), "--device", device.type, *options)
            ours = _ours(folder, words)
            rows.append(_row(f"{model}, batch {batch}, {method}", batch, ours, bare, repeats=repeats, quick=quick))
    return rows


def page(reports: Sequence[Report]) -> str:
    """Return the section of docs/explanation/performance.md; see `base.Benchmark`."""
    text = """\
Images per second of `lsam train` with one rank and its default logs, against a bare PyTorch loop with the same model
and the same images in memory, in turn in one process. SGD has no ascent and no exchanges on both sides; LSAM with
ascent, center and sketches is compared with a bare SAM of two passes.

"""
    for report in reports:
        text += f"{caption(report)}\n{markdown(report.rows)}\n"
        for row in report.rows:
            if "SGD" in str(row[""]):
                text += aim(f"{row['']}, {RATIO}", float(row[RATIO]), 0.95, at_most=False)
        text += "\n"
    return (
        text
        + """\
Each step draws its global step number, publishes the loss to the other ranks and logs a row. That takes some tenths of
a millisecond, and more with LSAM's exchanges and sketches; it is negligible if a step takes tens of milliseconds.
"""
    )


def _row(
    name: str, batch: int, ours: Callable[[int], float], bare: Callable[[int], float], *, repeats: int, quick: bool
) -> Row:
    steps = 20
    ours(steps)  # warm-up, which also sets the number of threads
    if not quick:
        bare(steps)
        steps = min(5000, max(20, math.ceil(SECONDS * steps / bare(steps))))
    turns: dict[str, list[float]] = {OURS: [], BARE: []}
    for _ in range(1 if quick else max(3, repeats // 5)):
        turns[OURS].append(ours(steps) / steps)
        turns[BARE].append(bare(steps) / steps)
    seconds = {way: statistics.median(values) for way, values in turns.items()}
    return {
        "": name,
        OURS: batch / seconds[OURS],
        BARE: batch / seconds[BARE],
        RATIO: seconds[BARE] / seconds[OURS],
        "more per step, us": 1e6 * (seconds[OURS] - seconds[BARE]),
    }


def _ours(folder: Path, options: Sequence[str]) -> Callable[[int], float]:
    """Return a function that trains for some steps with `lsam train` and returns the seconds that it reports."""

    def train(steps: int) -> float:
        with tempfile.TemporaryDirectory(dir=folder) as out, _undisturbed():
            words = ["--data", "fashion-mnist", "--data-dir", str(folder), "--steps", str(steps)]
            loop.main([*words, *options, "--out", f"{out}/run"])
            with Run(f"{out}/run") as run:
                result = run.result(0)
        if result is None:
            raise InputError("bench train: expected lsam train to finish, found it stopped by a signal")
        return result["seconds"]

    return train


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Suppress output, and restore the signal handlers afterwards."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


Step = Callable[[nn.Module, torch.optim.Optimizer, Tensor, Tensor], None]


def _bare(model: nn.Module, x: Tensor, y: Tensor, batch: int, step: Step) -> Callable[[int], float]:
    """Return a function that takes some steps in a bare PyTorch loop and returns the seconds."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)

    def train(steps: int) -> float:
        clock = time.perf_counter()
        remaining = steps
        while remaining:
            for chosen in torch.randperm(len(y)).to(x.device).split(batch)[: min(remaining, len(y) // batch)]:
                step(model, optimizer, x[chosen], y[chosen])
                remaining -= 1
        wait_for(x.device)
        return time.perf_counter() - clock

    return train


def _sgd_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    functional.cross_entropy(model(x), y).backward()
    optimizer.step()


def _sam_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    functional.cross_entropy(model(x), y).backward()
    params: list[Tensor] = list(model.parameters())
    with torch.no_grad():
        grads = [p.grad for p in params if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        ascent = torch._foreach_mul(grads, RHO / (norm.item() + 1e-12))
        torch._foreach_add_(params, list(ascent))
    optimizer.zero_grad()
    functional.cross_entropy(model(x), y).backward()
    with torch.no_grad():
        torch._foreach_sub_(params, list(ascent))
    optimizer.step()


def _write_images(folder: Path) -> None:
    """Write noise in the files of Fashion-MNIST."""
    random = np.random.default_rng(0)
    for part, count in (("train", IMAGES), ("t10k", 256)):
        images = random.integers(0, 256, (count, *SHAPE[1:]), np.uint8)
        labels = random.integers(0, CLASSES, count, np.uint8)
        head = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, count) + labels.tobytes())
