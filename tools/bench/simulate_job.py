"""A short real job of `lsam bench simulate`; every rank of an MPI job runs this module."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mpi4py import MPI
from torch import nn

from lsam_hpc import rma
from lsam_hpc.distributed.lsam import LSAM
from lsam_hpc.optim import Exchange
from lsam_hpc.tools.bench.base import medians

SIDE = 512  # rows and columns of the matrices that a computed pass multiplies


def main(argv: list[str]) -> int:
    """Run the job that the JSON in the first argument describes; rank 0 writes the results to the second's file."""
    arguments, out = json.loads(argv[0]), Path(argv[1])
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    results = (_exchange if arguments.pop("what") == "exchange" else _loop)(comm, **arguments)
    rows = comm.gather(results)
    if rows is not None:
        out.write_text(json.dumps(rows))
    return 0


def _loop(
    comm: MPI.Intracomm,
    *,
    seconds: float,
    period: int,
    pause: float,
    products: int,
    slower: float,
    sigma: float,
    parameters: int,
) -> dict[str, Any]:
    """Train for some seconds as `lsam bench straggler` does, with passes of a pause and some matrix products.

    Args:
        comm: the ranks.
        seconds: duration of the training.
        period: local steps between exchanges; 0: no exchanges.
        pause: seconds of a pass in which the CPU idles.
        products: matrix products in a pass.
        slower: factor by which the last rank's passes are longer.
        sigma: standard deviation of the logarithm of the passes' lognormal lengths.
        parameters: size of the model.
    """
    parameter = nn.Parameter(torch.zeros(parameters))
    factor = slower if comm.rank == comm.size - 1 else 1
    matrix = torch.eye(SIDE)
    draw = np.random.default_rng(comm.rank)
    records: list[Exchange] = []

    def closure() -> None:
        length = factor * draw.lognormal(-(sigma**2) / 2, sigma)
        if pause:
            time.sleep(pause * length)
        for _ in range(round(products * length)):
            torch.mm(matrix, matrix)
        parameter.grad = torch.full_like(parameter, 1e-6)

    base = torch.optim.SGD([parameter], lr=1e-3)
    with LSAM(base, rho=0.05, period=period or 10**9, budget="per-rank", on_exchange=records.append, comm=comm) as opt:
        opt.step(closure)
        records.clear()
        rma.barrier(comm)
        first, clock, cpu = opt.local_step, time.perf_counter(), time.process_time()
        ends = [clock]
        while ends[-1] - clock < seconds:
            opt.step(closure)
            ends.append(time.perf_counter())
        elapsed, busy = time.perf_counter() - clock, time.process_time() - cpu
        steps = opt.local_step - first
    lengths = np.diff(ends)
    return {
        "sigma": math.sqrt(math.log1p(float(lengths.var() / lengths.mean() ** 2))),  # of a lognormal with this spread
        "rate": steps / elapsed,
        "work": busy / steps,
        "exchanges": len(records),
        "staleness": _mean([r.staleness for r in records]),
        "seconds": _mean([r.seconds for r in records]),
        "blocked": _mean([r.blocked for r in records]),
        "delay": _mean([r.delay for r in records]),
    }


def _exchange(comm: MPI.Intracomm, parameters: int, repeats: int, products: int, rest: float) -> dict[str, float]:
    """Time a copy, a read, an add and matrix products on rank 0 alone, and a copy on all ranks at once.

    Args:
        comm: the ranks.
        parameters: size of the center.
        repeats: number of measurements of each.
        products: matrix products.
        rest: seconds for which the other ranks sleep beside rank 0: ranks that train do not wait in MPI either.
    """
    vector, out = np.full(parameters, 1e-6, np.float32), np.empty(parameters, np.float32)
    matrix = torch.eye(SIDE)

    def synchronize() -> None:
        rma.barrier(comm)

    def sleep() -> None:
        time.sleep(rest)

    helper = rma.ProgressThread(comm) if rma.why_progress_needed(comm) else nullcontext()
    with helper, rma.Center(comm, parameters) as center:
        ways = {
            "copy": lambda: np.copyto(out, vector),
            "read": lambda: center.read(out),
            "add": lambda: center.add(vector),
            "products": lambda: [torch.mm(matrix, matrix) for _ in range(products)],
        }
        others = comm.rank > 0
        seconds: dict[str, float] = medians(
            repeats, {name: (synchronize, sleep if others else way) for name, way in ways.items()}
        )
        seconds |= medians(repeats, {"copy together": (synchronize, ways["copy"])})
        synchronize()
    return seconds


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else 0.0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
