"""`mpirun -n 4 lsam bench straggler`: asynchronous chains against synchronous SAM, with one rank four times slower."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Sequence

import torch
from mpi4py import MPI
from torch import nn

from lsam_hpc import rma
from lsam_hpc.distributed.lsam import LSAM
from lsam_hpc.tools.bench.base import Report, Row, aim, caption, counted, markdown, value

TITLE = "A slow rank"
PASS = 0.02  # seconds of a forward and backward pass, in which a GPU would compute and the CPU idles
SLOWER = 4
PARAMETERS = 1_000_000
OURS, PART = "LSAM", "part of the own rates, %"


def measure(repeats: int, *, quick: bool) -> list[Row]:
    """Return a row per method; see `base.Benchmark`.

    A pass is a pause, with precomputed gradients. The own rates are those of the same loop without exchanges; LSAM
    exchanges every 4 steps; synchronous data-parallel SAM (own ascent, averaged descent) averages with Horovod if it is
    installed, else with MPI, and each of its steps counts for every rank. Each runs for `repeats` / 3 s.
    """
    comm = MPI.COMM_WORLD
    seconds = 0.3 if quick else max(2.0, repeats / 3)
    try:
        hvd = importlib.import_module("horovod.torch")
        hvd.init()
        name = "synchronous SAM (Horovod)"
    except ImportError:
        name = "synchronous SAM (MPI)"
    methods = ({"period": 10**9}, {"period": 4}, {"period": 10**9, "group_size": comm.size})
    alone, ours, synchronous = (_rate(comm, seconds, **method) for method in counted(methods))
    rates = {"own rates, summed": alone, OURS: ours, name: synchronous}
    rows: list[Row] = [{"": method, "steps/s": rate, PART: 100 * rate / alone} for method, rate in rates.items()]
    return rows if comm.rank == 0 else []


def page(reports: Sequence[Report]) -> str:
    """Return the section of docs/explanation/performance.md; see `base.Benchmark`."""
    text = f"""\
Passes take {1e3 * PASS:.0f} ms, and {SLOWER} times as long on the last rank; a million parameters, an exchange every
4 steps. The own rates are those of the same loop without exchanges; synchronous SAM averages gradients over all ranks
at each step.

"""
    for report in reports:
        text += f"{caption(report)}\n{markdown(report.rows)}\n"
        text += aim("LSAM, part of the own rates in %", value(report, OURS, PART), 95.0, at_most=False) + "\n"
    return text + "A pass is a pause, as if a GPU computed, because few cores cannot compute for many ranks at once.\n"


def _rate(comm: MPI.Intracomm, seconds: float, period: int, group_size: int = 1) -> float:
    """Return the steps per second of all ranks together; the last rank is slower."""
    parameter = nn.Parameter(torch.zeros(PARAMETERS))
    pause = PASS * (SLOWER if comm.rank == comm.size - 1 else 1)

    def closure() -> None:
        time.sleep(pause)
        parameter.grad = torch.full_like(parameter, 1e-6)

    base = torch.optim.SGD([parameter], lr=1e-3)
    with LSAM(base, rho=0.05, period=period, group_size=group_size, budget="per-rank", comm=comm) as opt:
        rma.barrier(comm)
        clock = time.perf_counter()
        go_on: Callable[[], bool] = lambda: time.perf_counter() - clock < seconds  # noqa: E731
        if opt.communication.links.group is not None:  # the ranks of a group stop at the same step
            draw, time_left = opt.communication.links.group.draw, go_on
            go_on = lambda: bool(draw(lambda: int(time_left())))  # noqa: E731
        while go_on():
            opt.step(closure)
        rate = opt.local_step / (time.perf_counter() - clock)
        total: float = comm.allreduce(rate)
    return total
