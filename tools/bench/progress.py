"""`mpirun -n 2 lsam bench progress`: throughput that a rank loses to the helper thread, which drives MPI."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from mpi4py import MPI

from lsam_hpc.rma import ProgressThread, barrier
from lsam_hpc.rma.half_precision import HalfPrecisionCenter
from lsam_hpc.tools.bench.base import Report, Row, caption, counted, markdown

TITLE = "The helper thread"
BLOCK = 0.1  # seconds of work per measurement


def measure(repeats: int, *, quick: bool) -> list[Row]:
    """Return a row per kind of helper, with the mean of all ranks; see `base.Benchmark`.

    The loss is the fraction of a core's throughput that the helper takes if no core is idle, computed from the CPU time
    of the rank's process for the same work with and without the helper. Other programs disturb CPU time less than wall
    time.

    * products: matrix products, a few long calls that release Python's lock, as in a forward and backward pass.
    * small operations: many short calls that hold the lock, as in an optimizer's loop over small tensors.
    """
    torch.set_num_threads(1)
    comm = MPI.COMM_WORLD
    a, b = torch.randn(512, 512), torch.randn(16)
    kinds: dict[str, Callable[[], object]] = {"products": lambda: a @ a, "small operations": lambda: b + b}
    lost = {
        kind: _lost(comm, repeats, _block(comm, work, BLOCK / 10 if quick else BLOCK)) for kind, work in kinds.items()
    }
    rows: list[Row] = [
        {"helper": helper, **{f"lost, {kind}, %": 100 * lost[kind][helper] for kind in kinds}}
        for helper in lost["products"]
    ]
    return rows if comm.rank == 0 else []


def page(reports: Sequence[Report]) -> str:
    """Return the section of docs/explanation/performance.md; see `base.Benchmark`."""
    text = """\
Throughput that a computing rank loses to the helper thread, which drives MPI: CPU time of the rank's process for the
same work with and without it. The thread runs only if ranks span nodes, the MPI needs it, or the wire has 16 bits.

"""
    text += "".join(f"{caption(report)}\n{markdown(report.rows)}\n" for report in reports)
    return text + "Most of the cost is waking the thread, so polling five times as often costs a few times as much.\n"


def _block(comm: MPI.Intracomm, work: Callable[[], object], seconds: float) -> Callable[[], None]:
    """Return a function that does the work for about `seconds`, equally often on all ranks and at each call."""
    count, began = 0, time.process_time()
    while time.process_time() - began < seconds:
        work()
        count += 1
    count = comm.bcast(count)

    def block() -> None:
        for _ in range(count):
            work()

    return block


def _lost(comm: MPI.Intracomm, repeats: int, block: Callable[[], None]) -> dict[str, float]:
    """Return, by helper, the fraction of a rank's throughput that it costs, measured in turn."""
    helpers: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "none": nullcontext,
        "1 ms": partial(ProgressThread, comm, 1e-3),
        "0.2 ms": partial(ProgressThread, comm, 2e-4),
        "1 ms, HalfPrecisionCenter's": partial(HalfPrecisionCenter, comm, 1000, "float16"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in helpers}
    for repeat in counted(range(-1, repeats)):
        for name, helper in helpers.items():
            with helper():
                barrier(comm)
                began = time.process_time()
                block()
                if repeat >= 0:
                    seconds[name].append(time.process_time() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    lost = {name: 1 - medians["none"] / value for name, value in medians.items() if name != "none"}
    return {name: comm.allreduce(value) / comm.size for name, value in lost.items()}
