"""`mpirun -n R lsam bench growth`: memory and time of a rank against the size of the model."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mpi4py import MPI
from torch import Tensor, nn

from lsam_hpc import rma
from lsam_hpc.distributed.lsam import LSAM
from lsam_hpc.errors import InputError
from lsam_hpc.optim import SAM, Exchange
from lsam_hpc.tools.bench.base import Row, medians
from lsam_hpc.tools.bench.growth_page import FIGURE, TITLE, draw, page

__all__ = ["FIGURE", "TITLE", "draw", "measure", "page"]
SIZES = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000)
TENSORS = 10  # of the model
PERIOD, RHO = 4, 0.05
SPARE = 1.1  # free memory that is required, relative to the memory that is needed
ROLLUP, FREE = Path("/proc/self/smaps_rollup"), Path("/proc/meminfo")


@dataclass
class _Stage:
    """Memory and time of a way of training, on this rank."""

    held: int  # bytes, with parameters and gradients
    seconds: float  # of a step
    exchanges: list[Exchange] = field(default_factory=list)


class _IgnoredStates:
    """Requests the states of each exchange, as the log does, and ignores them."""

    def wants(self, state: str, step: int) -> bool:
        """Return whether a state besides sample and center is wanted."""
        return False

    def on_states(self, step: int, version: int, states: Mapping[str, Tensor]) -> None:
        """Ignore the states."""


def measure(repeats: int, *, quick: bool) -> list[Row]:
    """Return a row per size of the model; see `base.Benchmark`.

    * memory: private memory and a proportional part of shared memory (the kernel's proportional set size, without the
      pages of files), in models of 4 bytes per parameter. SGD with momentum holds three: parameters, gradients,
      momentum. SAM holds one more copy. "center more" is what LSAM holds beyond SAM; its limit is two staging buffers
      and 1/R of a model.
    * time: of a copy of the model by all ranks at once, and of a step with precomputed gradients and an exchange every
      4 steps. "exchange" lasts from the staged sample to the result in the exchange thread; "held up" is the training
      thread's part.
    """
    if not ROLLUP.exists():
        raise InputError(f"bench growth: expected {ROLLUP}, which has the memory of a process, found none")
    comm = MPI.COMM_WORLD
    if not quick:
        _row(comm, SIZES[0], 1)  # warm-up: loads what is loaded at its first use
    rows = [_row(comm, size, repeats) for size in ((1000, 10**12) if quick else SIZES)]
    return rows if comm.rank == 0 else []


def _row(comm: MPI.Intracomm, size: int, repeats: int) -> Row:
    limit = 2 + 1 / comm.size
    row: Row = {"parameters": size, "ranks": comm.size}
    names = ("SGD", "SAM more", "center more", "center's limit", "with sketches more")
    row |= dict.fromkeys([f"{name}, models" for name in names], "")
    times = ("memcpy ms", "SGD step ms", "SAM step ms", "LSAM step ms", "exchange ms", "held up ms", "skipped")
    row |= dict.fromkeys(times, "")
    model = 4 * size  # bytes
    if shortage := _memory_shortage(comm, (4 + limit) * model):
        return {**row, "skipped": shortage}
    steps = PERIOD * max(2, min(repeats, round(2e8 / size / comm.size)))
    memcpy = _memcpy(comm, size, max(3, steps // PERIOD))
    empty = _held(comm)
    params = [nn.Parameter(torch.full((size // TENSORS,), 1e-3)) for _ in range(TENSORS)]
    grads = [torch.full_like(p, 1e-6) for p in params]
    sgd = _stage(comm, params, grads, steps, lambda base: base)
    sam = _stage(comm, params, grads, steps, lambda base: SAM(base, rho=RHO))
    lsam = _stage(comm, params, grads, steps, lambda base: LSAM(base, rho=RHO, period=PERIOD, comm=comm))
    logged = None
    if not _memory_shortage(comm, (2 + limit) * model):  # in addition to parameters and gradients
        witnessed = lambda base: LSAM(base, rho=RHO, period=PERIOD, comm=comm, state_callback=_IgnoredStates())  # noqa: E731
        logged = _stage(comm, params, grads, PERIOD * 2, witnessed)

    def models(held: int) -> float:
        total: int = comm.allreduce(held)
        return float(total / comm.size / model)

    def middle(seconds: float) -> float:
        return float(1e3 * statistics.median(comm.allgather(seconds)))

    return row | {
        "SGD, models": models(sgd.held - empty),
        "SAM more, models": models(sam.held - sgd.held),
        "center more, models": models(lsam.held - sam.held),
        "center's limit, models": limit,
        "with sketches more, models": models(logged.held - lsam.held) if logged else "",
        "memcpy ms": middle(memcpy),
        "SGD step ms": middle(sgd.seconds),
        "SAM step ms": middle(sam.seconds),
        "LSAM step ms": middle(lsam.seconds),
        "exchange ms": middle(statistics.median(e.seconds for e in lsam.exchanges)),
        "held up ms": middle(statistics.median(e.blocked for e in lsam.exchanges)),
    }


def _memcpy(comm: MPI.Intracomm, size: int, repeats: int) -> float:
    """Return the seconds of a copy of `size` float32 by all ranks at once."""
    source, copy = torch.ones(size), torch.ones(size)
    seconds = medians(repeats, {"": (lambda: rma.barrier(comm), lambda: copy.copy_(source))})
    return float(seconds[""])


def _stage(
    comm: MPI.Intracomm,
    params: list[nn.Parameter],
    grads: list[Tensor],
    steps: int,
    make: Callable[[torch.optim.Optimizer], torch.optim.Optimizer],
) -> _Stage:
    """Train with an optimizer, and return its memory and time; frees the memory afterwards."""
    records: list[Exchange] = []

    def closure() -> None:
        for p, g in zip(params, grads, strict=True):
            p.grad = g

    opt = make(torch.optim.SGD(params, lr=1e-4, momentum=0.9))
    if isinstance(opt, LSAM):
        opt.on_exchange = records.append
    for _ in range(PERIOD):  # the first steps allocate memory
        opt.step(closure)  # type: ignore[arg-type]
    rma.barrier(comm)
    clock = time.perf_counter()
    for _ in range(steps):
        opt.step(closure)  # type: ignore[arg-type]
    if isinstance(opt, LSAM):
        opt.drain()
    seconds = (time.perf_counter() - clock) / steps
    rma.barrier(comm)
    stage = _Stage(_held(comm), seconds, records)
    if isinstance(opt, LSAM):
        opt.close()
    for p in params:
        p.grad = None
    del opt
    gc.collect()  # it has reference cycles, and the next one needs its memory
    return stage


def _held(comm: MPI.Intracomm) -> int:
    """Return the bytes of this process, with a proportional part of shared memory; collective, with all ranks idle."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps freed memory
    if trim is not None:
        trim(0)
    rma.barrier(comm)
    kilobytes = dict(line.split()[:2] for line in ROLLUP.read_text().splitlines()[1:])
    rma.barrier(comm)
    return 1024 * (int(kilobytes["Pss_Anon:"]) + int(kilobytes["Pss_Shmem:"]))


def _memory_shortage(comm: MPI.Intracomm, nbytes: float) -> str:
    """Return a text if `nbytes` per rank are not free, else ""; collective."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    memory = dict(line.split()[:2] for line in FREE.read_text().splitlines())
    free = node.bcast(1024 * int(memory["MemAvailable:"]))
    needed = SPARE * nbytes * node.size
    node.Free()
    texts: list[str] = comm.allgather(f"{needed / 1e9:.3g} GB needed, {free / 1e9:.3g} free" if needed > free else "")
    return max(texts)
