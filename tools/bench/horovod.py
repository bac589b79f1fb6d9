"""`mpirun -n 2 lsam bench horovod`: a Horovod training loop with LSAM's optimizer against plain Horovod's."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mpi4py import MPI
from torch import nn
from torch.nn import functional

from lsam_hpc import rma
from lsam_hpc.tools.bench.base import Report, Row, caption, counted, markdown, number
from lsam_hpc.train.models import cnn, resnet18

TITLE = "Horovod scripts"
SLOWER = 3
BATCH = 4
PLAIN, RATIO = "plain Horovod", ": plain Horovod"
STEPS = 4  # per turn


def measure(repeats: int, *, quick: bool) -> list[Row]:
    """Return a row per way; see `base.Benchmark`.

    The loop is that of Horovod's synthetic benchmark with a ResNet-18 on 32 x 32 images: forward and backward pass on
    the CPU, then a step. "slowed": the last rank sleeps for twice the time of a step before each step. Rates are images
    per second, summed over the ranks, each over its own time; medians of the turns.
    """
    comm = MPI.COMM_WORLD
    plain, hvd = importlib.import_module("horovod.torch"), importlib.import_module("lsam_hpc.horovod")
    hvd.init()
    torch.set_num_threads(1)
    ways = {PLAIN: _loop(plain.DistributedOptimizer, quick=quick), "LSAM": _loop(hvd.DistributedOptimizer, quick=quick)}
    alone = _loop(lambda optimizer, **_: optimizer, quick=quick)
    rates: dict[tuple[str, str], list[float]] = {}
    for repeat in counted(range(-1, 1 if quick else max(3, repeats // 3))):
        step = alone(0.0) / STEPS
        for load in ("balanced", "slowed"):
            pause = (SLOWER - 1) * step if load == "slowed" and comm.rank == comm.size - 1 else 0.0
            for name, loop in ways.items():
                rma.barrier(comm)
                rate = comm.allreduce(BATCH * STEPS / loop(pause))
                if repeat >= 0:
                    rates.setdefault((name, load), []).append(rate)
    hvd.shutdown()
    medians = {key: statistics.median(values) for key, values in rates.items()}
    rows: list[Row] = []
    for load in ("balanced", "slowed"):
        base = medians[PLAIN, load]
        for name in ways:
            row: Row = {"": f"{name}, {f'one rank slowed {SLOWER}x' if load == 'slowed' else load}"}
            rows.append({**row, "images/s": medians[name, load], RATIO: medians[name, load] / base})
    return rows if comm.rank == 0 else []


def page(reports: Sequence[Report]) -> str:
    """Return the section of docs/explanation/performance.md; see `base.Benchmark`."""
    text = f"""\
Images per second of all ranks in the loop of Horovod's synthetic benchmark (a ResNet-18 on the CPU, batch {BATCH}),
with plain Horovod's optimizer and with LSAM's in turn. The ranks are equal, or the last one sleeps so that its step
takes {SLOWER} times as long.

"""
    for report in reports:
        balanced, slowed = (float(row[RATIO]) for row in report.rows[1::2])
        text += f"{caption(report)}\n{markdown(report.rows)}\n"
        text += f"LSAM : plain Horovod is {number(balanced)} with equal ranks and {number(slowed)} with a slow one.\n\n"
    return (
        text
        + """\
A step with dp-sat copies the parameters, moves them and restores them; it saves the allreduce and the wait for the
slowest rank.
"""
    )


def _loop(wrap: Callable[..., Any], *, quick: bool) -> Callable[[float], float]:
    """Return a function that takes some steps, sleeping before each one, and returns the seconds."""
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
