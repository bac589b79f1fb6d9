"""Memory of a rank of a benchmark: what it holds, what is free, and what an optimizer adds to it."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from mpi4py import MPI
from torch import nn

from lsam_hpc import rma
from lsam_hpc.distributed.lsam import LSAM
from lsam_hpc.errors import InputError
from lsam_hpc.optim import Exchange

PERIOD, RHO = 4, 0.05
_SPARE = 1.1  # free memory that is required, relative to the memory that is needed
_M_MMAP_THRESHOLD = -3  # of glibc's mallopt
_ROLLUP, _FREE = Path("/proc/self/smaps_rollup"), Path("/proc/meminfo")


@dataclass
class Stage:
    """Memory and time of a way of training, on this rank."""

    held: int  # bytes, with parameters and gradients
    seconds: float  # of a step
    exchanges: list[Exchange] = field(default_factory=list)


def require_rollup(name: str) -> None:
    """Raise InputError if the kernel does not report a process's memory.

    Args:
        name: of the benchmark.
    """
    if not _ROLLUP.exists():
        raise InputError(f"bench {name}: expected {_ROLLUP}, which has the memory of a process, found none")


def train(
    comm: MPI.Intracomm,
    params: list[nn.Parameter],
    closure: Callable[[], object],
    steps: int,
    make: Callable[[torch.optim.Optimizer], torch.optim.Optimizer],
) -> Stage:
    """Train with an optimizer, and return its memory and time; frees the memory afterwards.

    Args:
        comm: all ranks; collective.
        params: of the model.
        closure: sets their gradients.
        steps: number of timed steps, after 4 that are not timed.
        make: makes the optimizer, given SGD with momentum.
    """
    records: list[Exchange] = []
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
    stage = Stage(held(comm), seconds, records)
    if isinstance(opt, LSAM):
        opt.close()
    for p in params:
        p.grad = None
    del opt
    gc.collect()  # the next one needs its memory
    return stage


def return_freed_memory() -> None:
    """Make the C library return each large block when it is freed, so that `held` does not count free memory.

    glibc keeps blocks of up to 32 MB that threads have freed, also from `malloc_trim`: here the gathered parameters.
    """
    if (set_option := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        set_option(_M_MMAP_THRESHOLD, 1 << 16)  # a fixed one: by default glibc raises it


def held(comm: MPI.Intracomm) -> int:
    """Return the bytes of this process, with a proportional part of shared memory; collective, with all ranks idle."""
    gc.collect()  # models of FSDP2 and optimizers have reference cycles
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps freed memory
    if trim is not None:
        trim(0)
    rma.barrier(comm)
    kilobytes = dict(line.split()[:2] for line in _ROLLUP.read_text().splitlines()[1:])
    rma.barrier(comm)
    return 1024 * (int(kilobytes["Pss_Anon:"]) + int(kilobytes["Pss_Shmem:"]))


def shortage(comm: MPI.Intracomm, nbytes: float) -> str:
    """Return a text if `nbytes` per rank are not free, else ""; collective."""
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    memory = dict(line.split()[:2] for line in _FREE.read_text().splitlines())
    free = node.bcast(1024 * int(memory["MemAvailable:"]))
    needed = _SPARE * nbytes * node.size
    node.Free()
    texts: list[str] = comm.allgather(f"{needed / 1e9:.3g} GB needed, {free / 1e9:.3g} free" if needed > free else "")
    return max(texts)
