"""`mpirun -n 2 lsam bench exchange`: cost of moving a model through the center, relative to a copy in memory."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from mpi4py import MPI
from numpy.typing import NDArray
from torch import nn

from lsam_hpc import rma
from lsam_hpc.distributed.lsam import LSAM
from lsam_hpc.optim import Exchange
from lsam_hpc.tools.bench.base import (
    Report,
    Row,
    Timed,
    aim,
    caption,
    counted,
    device_of,
    markdown,
    medians,
    number,
    value,
)
from lsam_hpc.train.models import cnn, resnet18

TITLE = "The exchange"
STEP = 0.1  # seconds of the pretended forward and backward pass, in which a GPU computes and the CPU idles
PERIOD = 4
HELD, STEPS, LONGER = "training thread held up", f"step of {1e3 * STEP:.0f} ms, period {PERIOD}", "longer by %"


def measure(repeats: int, *, quick: bool) -> list[Row]:
    """Return a row per way of moving the 11 million float32 of a ResNet-18; see `base.Benchmark`.

    Each is timed with one active rank ("alone") and with all ranks active ("together"), and so is a memcpy. Bluefog's
    way, one window per parameter and messages of 2,000 elements, is reimplemented here from its description. Horovod's
    allreduce is Horovod's own, if it is installed.
    """
    comm = MPI.COMM_WORLD
    model = cnn((1, 8, 8), 10) if quick else resnet18((3, 32, 32), 10)
    step = STEP / 10 if quick else STEP
    sizes = [p.numel() for p in model.parameters()]
    vector, out = np.full(sum(sizes), 1e-6, np.float32), np.empty(sum(sizes), np.float32)
    with ExitStack() as stack:
        ways = dict(_ways(comm, sizes, vector, out, stack))
        timings = {
            "alone": _run(comm, repeats, ways, lambda name: comm.rank == 0 or name in _COLLECTIVE),
            "together": _run(comm, repeats, ways, lambda name: True),
        }
    rows = [_row(name, {mode: times[name] for mode, times in timings.items()}, timings) for name in ways]
    blocked, overhead = _training(comm, model, repeats, step)
    rows.append(_row(HELD, {"together": blocked}, timings))
    rows.append({**_row(STEPS, {}, timings), LONGER: 100 * overhead})
    return rows if comm.rank == 0 else []


def page(reports: Sequence[Report]) -> str:
    """Return the section of docs/explanation/performance.md; see `base.Benchmark`."""
    text = """\
Time to move the 11 million float32 of a ResNet-18 (45 MB), relative to a copy of them in memory, with one active rank
("alone") and with all ranks active ("together"). Bluefog's way, a window per parameter and messages of 2,000 elements,
is reimplemented in the benchmark from its description. Horovod's allreduce is Horovod's own.

"""
    for report in reports:
        names = [name for name in report.rows[0] if name != LONGER]
        text += f"{caption(report)}\n{markdown([r for r in report.rows if r[LONGER] == ''], names)}\n"
        text += aim("a read, alone : memcpy", value(report, "read", "alone : memcpy"), 1.5)
        text += aim("an add, alone : memcpy", value(report, "add", "alone : memcpy"), 2.5)
        held = value(report, HELD, "together : memcpy")
        text += aim("the training thread held up by an exchange : memcpy", held, 2.0)
        text += aim(f"a {STEPS}, longer by %", value(report, STEPS, LONGER), 2.0) + "\n"
    first, plain = reports[0], value(reports[0], "memcpy", "alone ms")
    exact = value(first, "consistent read", "alone ms") / value(first, "read", "alone ms")
    half = value(first, "add, bfloat16", "alone ms") / value(first, "add", "alone ms")
    return f"""{text}
A step here is a pause of {1e3 * STEP:.0f} ms, as if a GPU computed. In an exchange, the training thread only copies the
sample and subtracts the result. With {number(plain)} ms for a copy of 45 MB, the copy alone takes {
        number(plain / (10 * STEP * PERIOD))
    } % of {PERIOD} such steps; with twice the period it takes half of that.

`rma.Center.read(consistent=True)` takes {number(exact)} times as long as a plain read. An add with a bfloat16 wire
takes {number(half)} times as long as a plain add: within a node it costs more than it saves; it is meant for networks.
"""


def _row(name: str, seconds: dict[str, float], base: dict[str, dict[str, float]]) -> Row:
    row: Row = {"": name}
    for mode, times in base.items():
        row[f"{mode} ms"] = 1e3 * seconds[mode] if mode in seconds else ""
        row[f"{mode} : memcpy"] = seconds[mode] / times["memcpy"] if mode in seconds else ""
    return {**row, LONGER: ""}


_COLLECTIVE = ("MPI allreduce", "Horovod allreduce")


def _ways(
    comm: MPI.Intracomm, sizes: list[int], vector: NDArray[np.float32], out: NDArray[np.float32], stack: ExitStack
) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "memcpy", lambda: np.copyto(out, vector)
    center = stack.enter_context(rma.Center(comm, vector.size))
    yield "read", lambda: center.read(out)
    yield "add", lambda: center.add(vector)
    yield "consistent read", lambda: center.read(out, consistent=True)
    half = stack.enter_context(rma.HalfPrecisionCenter(comm, vector.size, "bfloat16"))
    yield "read, bfloat16", lambda: half.read(out)
    yield "add, bfloat16", lambda: half.add(vector)
    windows = [MPI.Win.Allocate(4 * size, 4, comm=comm) for size in sizes]
    for window in windows:
        stack.callback(window.Free)
        stack.callback(window.Unlock_all)
        window.Lock_all()
    target = (comm.rank + 1) % comm.size

    def per_parameter(*, accumulate: bool) -> None:
        at = 0
        for window, size in zip(windows, sizes, strict=True):
            for first in range(0, size, 2000):
                count = min(2000, size - first)
                if accumulate:
                    window.Accumulate(vector[at + first : at + first + count], target, first, MPI.SUM)
                else:
                    window.Get(out[at + first : at + first + count], target, first)
            window.Flush(target)
            at += size

    yield "Bluefog's way, get", lambda: per_parameter(accumulate=False)
    yield "Bluefog's way, accumulate", lambda: per_parameter(accumulate=True)
    yield "MPI allreduce", lambda: comm.Allreduce(vector, out)
    try:
        hvd = importlib.import_module("horovod.torch")
    except ImportError:
        return
    hvd.init()
    stack.callback(hvd.shutdown)
    tensor = torch.from_numpy(vector.copy())
    yield "Horovod allreduce", lambda: hvd.allreduce_(tensor, name="bench", op=hvd.Average)


def _run(
    comm: MPI.Intracomm, repeats: int, ways: dict[str, Callable[[], object]], takes_part: Callable[[str], bool]
) -> dict[str, float]:
    timed: Timed = {
        name: (lambda: rma.barrier(comm), way if takes_part(name) else lambda: None) for name, way in ways.items()
    }
    seconds: dict[str, float] = medians(repeats, timed)
    rma.barrier(comm)
    return seconds


def _training(comm: MPI.Intracomm, model: nn.Module, repeats: int, step: float) -> tuple[float, float]:
    """Return the seconds that an exchange holds up the training thread, and the relative slowdown of a step.

    Steps of two periods with exchanges and as many without take turns, so that a slow moment affects both.
    """
    model.to(device_of(comm.rank))
    records: list[Exchange] = []
    seconds: dict[int, list[float]] = {PERIOD: [], 10**9: []}
    base = torch.optim.SGD(model.parameters(), lr=0.0)
    with LSAM(base, rho=0.0, ascent="dp-sat", period=PERIOD, on_exchange=records.append, comm=comm) as opt:

        def closure() -> None:
            time.sleep(step)
            for p in model.parameters():
                p.grad = torch.zeros_like(p)

        opt.step(closure)
        rma.barrier(comm)
        for _ in counted(range(max(2, repeats // 3))):
            for period, lengths in seconds.items():
                opt.period = period
                clock = time.perf_counter()
                for _ in range(2 * PERIOD):
                    opt.step(closure)
                lengths.append((time.perf_counter() - clock) / (2 * PERIOD))
                opt.drain()
    with_them, without = (statistics.median(values) for values in seconds.values())
    return statistics.median(r.blocked for r in records), with_them / without - 1
