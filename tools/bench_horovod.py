"""`mpirun -n 2 lsam bench horovod`: a Horovod training loop with LSAM's optimizer against plain Horovod's."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lsam_hpc.tools.bench_base import Report, Row, caption, markdown, number
from mpi4py import MPI
from torch import nn
from torch.nn import functional

from lsam_hpc import rma
from lsam_hpc.train.models import cnn, resnet18

TITLE = "Horovod scripts"
SLOWER = 3
BATCH = 4
PLAIN, RATIO = "plain Horovod", ": plain Horovod"
STEPS = 4  # of a round; the ways take turns


def measure(repeats: int, quick: bool) -> list[Row]:
    """Return a row per way; see `bench_base.Benchmark`.

    The loop is that of Horovod's synthetic benchmark with a ResNet-18 on 32 x 32 images: forward and backward pass on
    the CPU, then a step. "slowed" has the last rank rest for twice its own step's time at each step. Rates are images
    per second of all ranks, each over the time that it took itself; medians of the rounds.
    """
    comm = MPI.COMM_WORLD
    plain, hvd = importlib.import_module("horovod.torch"), importlib.import_module("lsam_hpc.horovod")
    hvd.init()
    torch.set_num_threads(1)
    ways = {PLAIN: _loop(plain.DistributedOptimizer, quick), "LSAM": _loop(hvd.DistributedOptimizer, quick)}
    own = _loop(lambda optimizer, **_: optimizer, quick)
    rates: dict[tuple[str, str], list[float]] = {}
    for repeat in range(-1, 1 if quick else max(3, repeats // 3)):
        step = own(0.0) / STEPS
        for load in ("balanced", "slowed"):
            pause = (SLOWER - 1) * step if load == "slowed" and comm.rank == comm.size - 1 else 0.0
            for name, loop in ways.items():
                rma.barrier(comm)
                rate = comm.allreduce(BATCH * STEPS / loop(pause))
                if repeat >= 0:
                    rates.setdefault((name, load), []).append(rate)
    hvd.shutdown()
    found = {key: statistics.median(values) for key, values in rates.items()}
    rows: list[Row] = []
    for load in ("balanced", "slowed"):
        base = found[PLAIN, load]
        for name in ways:
            row: Row = {"": f"{name}, {f'one rank slowed {SLOWER}x' if load == 'slowed' else load}"}
            rows.append({**row, "images/s": found[name, load], RATIO: found[name, load] / base})
    return rows if comm.rank == 0 else []


def page(reports: Sequence[Report]) -> str:
    """Return the section of docs/performance.md; see `bench_base.Benchmark`."""
    text = f"""\
The loop of Horovod's synthetic benchmark (a ResNet-18 on the CPU, batch {BATCH}) with plain Horovod's optimizer and
with
LSAM's, in turn, with equal ranks and with the last one resting so that its step takes {SLOWER} times as long: images
per
second of all ranks.

"""
    for report in reports:
        balanced, slowed = (float(row[RATIO]) for row in report.rows[1::2])
        text += f"{caption(report)}\n{markdown(report.rows)}\n"
        text += f"LSAM : plain Horovod is {number(balanced)} with equal ranks and {number(slowed)} with a slow one.\n\n"
    return (
        text
        + """\
A stale step adds a copy of the parameters, their move and their restoring; it takes away the allreduce and the wait
for the
slowest rank.
"""
    )


def _loop(wrap: Callable[..., Any], quick: bool) -> Callable[[float], float]:
    """Return a function that takes some steps, resting after each backward pass, and returns the seconds."""
    torch.manual_seed(0)
    model: nn.Module = (cnn if quick else resnet18)((3, 32, 32), 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    optimizer = wrap(optimizer, named_parameters=model.named_parameters())
    data, target = torch.randn(BATCH, 3, 32, 32), torch.randint(10, (BATCH,))

    def run(pause: float) -> float:
        clock = time.perf_counter()
        for _ in range(STEPS):
            time.sleep(pause)
            optimizer.zero_grad()
            functional.cross_entropy(model(data), target).backward()
            optimizer.step()
        return time.perf_counter() - clock

    return run
