"""`mpirun -n R lsam bench growth`: memory and time of a rank against the size of the model."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import torch
from mpi4py import MPI
from torch import Tensor, nn

from lsam_hpc import rma
from lsam_hpc.distributed.lsam import LSAM
from lsam_hpc.optim import SAM
from lsam_hpc.tools.bench.base import Row, counted, medians
from lsam_hpc.tools.bench.growth_page import FIGURE, TITLE, draw, page
from lsam_hpc.tools.bench.memory import PERIOD, RHO, held, require_rollup, shortage, train

__all__ = ["FIGURE", "TITLE", "draw", "measure", "page"]
SIZES = (100_000, 300_000, 1_000_000, 3_000_000, 10_000_000, 30_000_000, 100_000_000)
TENSORS = 10  # of the model


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
    require_rollup("growth")
    comm = MPI.COMM_WORLD
    if not quick:
        _row(comm, SIZES[0], 1)  # warm-up: loads what is loaded at its first use
    rows = [_row(comm, size, repeats) for size in counted((1000, 10**12) if quick else SIZES)]
    return rows if comm.rank == 0 else []


def _row(comm: MPI.Intracomm, size: int, repeats: int) -> Row:
    limit = 2 + 1 / comm.size
    row: Row = {"parameters": size, "ranks": comm.size}
    names = ("SGD", "SAM more", "center more", "center's limit", "with sketches more")
    row |= dict.fromkeys([f"{name}, models" for name in names], "")
    times = ("memcpy ms", "SGD step ms", "SAM step ms", "LSAM step ms", "exchange ms", "held up ms", "skipped")
    row |= dict.fromkeys(times, "")
    model = 4 * size  # bytes
    if missing := shortage(comm, (4 + limit) * model):
        return {**row, "skipped": missing}
    steps = PERIOD * max(2, min(repeats, round(2e8 / size / comm.size)))
    memcpy = _memcpy(comm, size, max(3, steps // PERIOD))
    empty = held(comm)
    params = [nn.Parameter(torch.full((size // TENSORS,), 1e-3)) for _ in range(TENSORS)]
    grads = [torch.full_like(p, 1e-6) for p in params]

    def closure() -> None:
        for p, g in zip(params, grads, strict=True):
            p.grad = g

    sgd = train(comm, params, closure, steps, lambda base: base)
    sam = train(comm, params, closure, steps, lambda base: SAM(base, rho=RHO))
    lsam = train(comm, params, closure, steps, lambda base: LSAM(base, rho=RHO, period=PERIOD, comm=comm))
    logged = None
    if not shortage(comm, (2 + limit) * model):  # in addition to parameters and gradients
        witnessed = lambda base: LSAM(base, rho=RHO, period=PERIOD, comm=comm, state_callback=_IgnoredStates())  # noqa: E731
        logged = train(comm, params, closure, PERIOD * 2, witnessed)

    def models(nbytes: int) -> float:
        total: int = comm.allreduce(nbytes)
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
