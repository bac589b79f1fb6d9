"""One short real job of `lsam bench simulate`, on every rank of an MPI job."""

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
from lsam_hpc.tools.bench_base import medians
from mpi4py import MPI
from torch import nn

from lsam_hpc import rma
from lsam_hpc.distributed import LSAM
from lsam_hpc.optim import Exchange

SIDE = 512  # of the matrices that a computed pass multiplies


def main(argv: list[str]) -> int:
    """Do what the JSON in the first argument says; rank 0 writes what it found to the second's file."""
    given, out = json.loads(argv[0]), Path(argv[1])
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    found = (_exchange if given.pop("what") == "exchange" else _loop)(comm, **given)
    rows = comm.gather(found)
    if rows is not None:
        out.write_text(json.dumps(rows))
    return 0


def _loop(
    comm: MPI.Intracomm,
    seconds: float,
    period: int,
    pause: float,
    products: int,
    slower: float,
    sigma: float,
    parameters: int,
) -> dict[str, Any]:
    """Train for some seconds as `lsam bench straggler` does, each pass a pause and some products of matrices.

    Args:
        comm: the ranks.
        seconds: to train.
        period: local steps between exchanges; 0: none.
        pause: seconds of a pass in which the CPU idles.
        products: of matrices in a pass.
        slower: how many times longer the last rank's passes are.
        sigma: of the passes' lengths, lognormal.
        parameters: of the model.
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
    with LSAM(base, rho=0.05, period=period or 10**9, budget="per-rank", observer=records.append, comm=comm) as opt:
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
        "rate": steps / elapsed, "work": busy / steps, "exchanges": len(records),
        "staleness": _mean([r.staleness for r in records]), "seconds": _mean([r.seconds for r in records]),
        "blocked": _mean([r.blocked for r in records]), "delay": _mean([r.delay for r in records]),
    }  # fmt: skip


def _exchange(comm: MPI.Intracomm, parameters: int, repeats: int, products: int, rest: float) -> dict[str, float]:
    """Time a copy, a read, an add and products of matrices with rank 0 alone at work, and a copy of all together.

    Args:
        comm: the ranks.
        parameters: of the center.
        repeats: of each.
        products: of matrices.
        rest: seconds for which the others sleep beside rank 0, as ranks that train do not wait in MPI for one another.
    """
    vector, out = np.full(parameters, 1e-6, np.float32), np.empty(parameters, np.float32)
    matrix = torch.eye(SIDE)

    def meet() -> None:
        rma.barrier(comm)

    def sleep() -> None:
        time.sleep(rest)

    helper = rma.Progress(comm) if rma.reason(comm) else nullcontext()
    with helper, rma.Center(comm, parameters) as center:
        ways = {
            "copy": lambda: np.copyto(out, vector),
            "read": lambda: center.read(out),
            "add": lambda: center.add(vector),
            "products": lambda: [torch.mm(matrix, matrix) for _ in range(products)],
        }
        others = comm.rank > 0
        found: dict[str, float] = medians(
            repeats, {name: (meet, sleep if others else way) for name, way in ways.items()}
        )
        found |= medians(repeats, {"copy together": (meet, ways["copy"])})
        meet()
    return found


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else 0.0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
