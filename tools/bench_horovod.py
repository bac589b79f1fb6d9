"""`mpirun -n 2 lsam bench horovod`: a Horovod training loop with LSAM's optimizer against plain Horovod's."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import horovod.torch as plain
import torch
from mpi4py import MPI
from torch import nn
from torch.nn import functional

import lsam_hpc.horovod as hvd
from lsam_hpc import rma
from lsam_hpc.errors import InputError
from lsam_hpc.train.models import resnet18

SLOWER = 3
BATCH = 4
STEPS = 4  # of a round; the ways take turns
Row = dict[str, str | float]


def measure(repeats: int) -> list[Row]:
    """Return a row per way; no rows on ranks above 0.

    The loop is that of Horovod's synthetic benchmark with a ResNet-18 on 32 x 32 images: forward and backward pass on
    the CPU, then a step. "slowed" has the last rank rest for twice its own step's time at each step. Rates are images
    per second of all ranks, each over the time that it took itself; medians of the rounds.
    """
    comm = MPI.COMM_WORLD
    if comm.size < 2:
        raise InputError("bench horovod: expected 2 ranks or more, as in mpirun -n 2 lsam bench horovod, found 1")
    hvd.init()
    torch.set_num_threads(1)
    ways = {"plain Horovod": _loop(plain.DistributedOptimizer), "LSAM": _loop(hvd.DistributedOptimizer)}
    own = _loop(lambda optimizer, **_: optimizer)
    rates: dict[tuple[str, str], list[float]] = {}
    for repeat in range(-1, max(3, repeats // 3)):
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
        base = found["plain Horovod", load]
        for name in ways:
            row: Row = {"": f"{name}, {f'one rank slowed {SLOWER}x' if load == 'slowed' else load}"}
            rows.append({**row, "images/s": found[name, load], ": plain Horovod": found[name, load] / base})
    return rows if comm.rank == 0 else []


def _loop(wrap: Callable[..., Any]) -> Callable[[float], float]:
    """Return a function that takes some steps, resting after each backward pass, and returns the seconds."""
    torch.manual_seed(0)
    model: nn.Module = resnet18((3, 32, 32), 10)
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
