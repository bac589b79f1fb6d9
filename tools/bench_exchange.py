"""`mpirun -n 2 lsam bench exchange`: what moving a model through the center costs, against a copy in memory."""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from lsam_hpc.tools.bench_base import Report, Row, Timed, aim, caption, markdown, medians, number, value
from mpi4py import MPI
from numpy.typing import NDArray
from torch import nn

from lsam_hpc import rma
from lsam_hpc.distributed import LSAM
from lsam_hpc.optim import Exchange
from lsam_hpc.train.models import cnn, resnet18

TITLE = "The exchange"
STEP = 0.1  # seconds of the pretended forward and backward pass, in which a GPU computes and the CPU idles
PERIOD = 4
HELD, STEPS, LONGER = "training thread held up", f"step of {1e3 * STEP:.0f} ms, period {PERIOD}", "longer by %"


def measure(repeats: int, quick: bool) -> list[Row]:
    """Return a row per way of moving the 11 million float32 of a ResNet-18; see `bench_base.Benchmark`.

    Each is timed with one rank at work ("alone") and with all at once ("together"), a memcpy too. Bluefog's way, one
    window per parameter in messages of 2,000 elements, is written here after its description; Horovod's allreduce is
    its own, where it is installed.
    """
    comm = MPI.COMM_WORLD
    model = cnn((1, 8, 8), 10) if quick else resnet18((3, 32, 32), 10)
    step = STEP / 10 if quick else STEP
    sizes = [p.numel() for p in model.parameters()]
    vector, out = np.full(sum(sizes), 1e-6, np.float32), np.empty(sum(sizes), np.float32)
    with ExitStack() as stack:
        ways = dict(_ways(comm, sizes, vector, out, stack))
        found = {"alone": _run(comm, repeats, ways, lambda name: comm.rank == 0 or name in _COLLECTIVE),
                 "together": _run(comm, repeats, ways, lambda name: True)}  # fmt: skip
    rows = [_row(name, {how: times[name] for how, times in found.items()}, found) for name in ways]
    blocked, overhead = _training(comm, model, repeats, step)
    rows.append(_row(HELD, {"together": blocked}, found))
    rows.append({**_row(STEPS, {}, found), LONGER: 100 * overhead})
    return rows if comm.rank == 0 else []


def page(reports: Sequence[Report]) -> str:
    """Return the section of docs/performance.md; see `bench_base.Benchmark`."""
    text = """\
Moving the 11 million float32 of a ResNet-18 (45 MB), against a copy of them in memory: with one rank at work
("alone") and
with all at once ("together"). Bluefog's way, a window per parameter and messages of 2,000 elements, is written in the
benchmark after its description; Horovod's allreduce is its own.

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
A step is a pause of {1e3 * STEP:.0f} ms here, as if a GPU computed. What is left on the training thread is one copy
of the
sample and one subtraction: at {number(plain)} ms for a copy of 45 MB, the copy alone is {
        number(plain / (10 * STEP * PERIOD))
    } %
of {PERIOD} such steps. Twice the period halves it.

`rma.Center.read(consistent=True)` takes {number(exact)} times as long as a plain read here, an add with a bfloat16 wire
{number(half)} times as long as a plain one: it costs more than it saves on one node, and is for networks.
"""


def _row(name: str, seconds: dict[str, float], base: dict[str, dict[str, float]]) -> Row:
    found: Row = {"": name}
    for how, times in base.items():
        found[f"{how} ms"] = 1e3 * seconds[how] if how in seconds else ""
        found[f"{how} : memcpy"] = seconds[how] / times["memcpy"] if how in seconds else ""
    return {**found, LONGER: ""}


_COLLECTIVE = ("MPI allreduce", "Horovod allreduce")


def _ways(
    comm: MPI.Intracomm, sizes: list[int], vector: NDArray[np.float32], out: NDArray[np.float32], stack: ExitStack
) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "memcpy", lambda: np.copyto(out, vector)
    center = stack.enter_context(rma.Center(comm, vector.size))
    yield "read", lambda: center.read(out)
    yield "add", lambda: center.add(vector)
    yield "consistent read", lambda: center.read(out, consistent=True)
    half = stack.enter_context(rma.HalfCenter(comm, vector.size, "bfloat16"))
    yield "read, bfloat16", lambda: half.read(out)
    yield "add, bfloat16", lambda: half.add(vector)
    windows = [MPI.Win.Allocate(4 * size, 4, comm=comm) for size in sizes]
    for window in windows:
        stack.callback(window.Free)
        stack.callback(window.Unlock_all)
        window.Lock_all()
    target = (comm.rank + 1) % comm.size

    def per_parameter(accumulate: bool) -> None:
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

    yield "Bluefog's way, get", lambda: per_parameter(False)
    yield "Bluefog's way, accumulate", lambda: per_parameter(True)
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
    found: dict[str, float] = medians(repeats, timed)
    rma.barrier(comm)
    return found


def _training(comm: MPI.Intracomm, model: nn.Module, repeats: int, step: float) -> tuple[float, float]:
    """Return the seconds that an exchange holds up the training thread, and the part by which a step gets longer.

    Two exchanges' worth of steps with them and as many without take turns, so that a slow moment meets both.
    """
    records: list[Exchange] = []
    seconds: dict[int, list[float]] = {PERIOD: [], 10**9: []}
    base = torch.optim.SGD(model.parameters(), lr=0.0)
    with LSAM(base, rho=0.0, ascent="stale", period=PERIOD, observer=records.append, comm=comm) as opt:

        def closure() -> None:
            time.sleep(step)
            for p in model.parameters():
                p.grad = torch.zeros_like(p)

        opt.step(closure)
        rma.barrier(comm)
        for _ in range(max(2, repeats // 3)):
            for period, found in seconds.items():
                opt.period = period
                clock = time.perf_counter()
                for _ in range(2 * PERIOD):
                    opt.step(closure)
                found.append((time.perf_counter() - clock) / (2 * PERIOD))
                opt.drain()
    with_them, without = (statistics.median(values) for values in seconds.values())
    return statistics.median(r.blocked for r in records), with_them / without - 1
