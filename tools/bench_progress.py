"""`mpirun -n 2 lsam bench progress`: what the helper thread that keeps MPI going takes from a rank's computing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from lsam_hpc.tools.bench_base import Report, Row, caption, markdown
from mpi4py import MPI

from lsam_hpc.rma import Progress, barrier
from lsam_hpc.rma.half import HalfCenter

TITLE = "The helper thread"
BLOCK = 0.1  # seconds of work that are measured at a time


def measure(repeats: int, quick: bool) -> list[Row]:
    """Return a row per kind of helper, with the mean of all ranks; see `bench_base.Benchmark`.

    What is lost is the part of a core's throughput that goes to the helper, where no core is idle: from the CPU time of
    the rank's process for the same work with the helper and without. So other programs on the machine disturb it less
    than they would disturb a clock.

    * products: of matrices, in a few long calls that let go of Python's lock, as a forward and backward pass has.
    * small operations: many short calls that need the lock, as an optimizer's loop over small tensors has.
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
    """Return the section of docs/performance.md; see `bench_base.Benchmark`."""
    text = """\
What the thread that keeps MPI going takes from a rank that computes, by the CPU time of the rank's process for the same
work with it and without. It runs only where ranks span nodes or the MPI needs it, and with a half-precision wire.

"""
    text += "".join(f"{caption(report)}\n{markdown(report.rows)}\n" for report in reports)
    return (
        text
        + "Nearly all of a round is the waking of a thread, so a round five times as often costs a few times as much.\n"
    )


def _block(comm: MPI.Intracomm, work: Callable[[], object], seconds: float) -> Callable[[], None]:
    """Return a function that does the work for about so many seconds, equally often on all ranks and at each call."""
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
    """Return by helper the part of a rank's throughput that it costs, measured in turn."""
    helpers: dict[str, Callable[[], AbstractContextManager[object]]] = {
        "none": nullcontext,
        "1 ms": partial(Progress, comm, 1e-3),
        "0.2 ms": partial(Progress, comm, 2e-4),
        "1 ms, HalfCenter's": partial(HalfCenter, comm, 1000, "float16"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in helpers}
    for repeat in range(-1, repeats):
        for name, helper in helpers.items():
            with helper():
                barrier(comm)
                began = time.process_time()
                block()
                if repeat >= 0:
                    seconds[name].append(time.process_time() - began)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    mine = {name: 1 - medians["none"] / value for name, value in medians.items() if name != "none"}
    return {name: comm.allreduce(value) / comm.size for name, value in mine.items()}
