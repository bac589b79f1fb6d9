"""Makes a rank's chain and its log at the first step of a script."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from mpi4py import MPI
from torch import Tensor, nn
from torch.optim import Optimizer

from lsam_hpc import rma
from lsam_hpc.distributed.lsam import LSAM
from lsam_hpc.errors import InputError
from lsam_hpc.horovod.options import Options
from lsam_hpc.horovod.session import session
from lsam_hpc.optim import masks
from lsam_hpc.options.ascent import AscentOptions
from lsam_hpc.options.communication import CommunicationOptions
from lsam_hpc.options.coupling import CouplingOptions
from lsam_hpc.options.logging import LoggingOptions, check_logging
from lsam_hpc.options.option import keywords, part
from lsam_hpc.rundir.lock import RunLock, lock
from lsam_hpc.rundir.prepare import prepare
from lsam_hpc.rundir.runlog import RunLog, describe

# Without those of the data set and the number of steps, which a script does not give, and those that switch off
# gradients, for which Horovod waits.
MASKS = ("all", "norm", "random", "fsam", "adasap")


def make_chain(
    base: Optimizer,
    options: Options,
    model: nn.Module | None,
    ranks: Sequence[int],
    *,
    average: Callable[[list[Tensor]], None],
    log: RunLog | None,
) -> LSAM:
    """Return this rank's chain; collective.

    Args:
        base: the optimizer that takes the steps.
        options: the script's options.
        model: the module that holds the parameters; None if no such module was called.
        ranks: the ranks of this rank's group, with this rank.
        average: averages gradients over the group.
        log: the run's log; None: no log.
    """
    comm = session.comm

    def check() -> None:
        if options.mask not in MASKS:
            raise InputError(f"mask: expected one of {', '.join(MASKS)} in a Horovod script, found {options.mask!r}")
        if model is not None:
            masks.make(options, model)
        elif options.mask not in ("all", "random"):
            raise InputError(
                f"mask: {options.mask}: expected a call of the module that holds the parameters, found none"
            )

    rma.raise_on_all(comm, check)
    communication = keywords(options, CommunicationOptions)
    if max(map(len, comm.allgather(list(ranks)))) > 1:
        # Horovod averages in the backward pass already: each rank's own gradient is not available.
        communication |= {"group_ranks": list(ranks), "group_average": average}
    communication["group_size"] = len(ranks)
    ascent = {**keywords(options, AscentOptions), "ascent": options.one_pass_ascent}
    if model is not None:
        ascent["mask"] = masks.make(options, model)
    chain = LSAM(
        base,
        **ascent,
        **keywords(options, CouplingOptions),
        **communication,
        budget="per-rank",  # the script counts its steps
        on_exchange=log.exchange if log else None,
        state_callback=log.state_callback if log else None,
        comm=comm,
        model=model,
    )
    chain.keeps_gradients = True
    return chain


class ChainLog:
    """A rank's log in a run directory.

    Args:
        run: the log.
        run_dir: the run directory.
        held: its lock; released at the end.
    """

    def __init__(self, run: RunLog, run_dir: Path, held: RunLock) -> None:
        self.run = run
        self._run_dir = run_dir
        self._held = held

    def follow(self, chain: LSAM) -> None:
        """Let the lock tell this chain's progress and the ranks that it sees as dead."""
        self._held.unresponsive = lambda: {*chain.unresponsive_ranks, *chain.failed_ranks}
        self._held.steps = lambda: chain.communication.links.peers.steps

    def step(self, chain: LSAM, loss: object) -> None:
        """Log the step that the chain has just taken; a loss that is not a number is logged as NaN."""
        known = isinstance(loss, (Tensor, float))
        self.run.step(chain, chain.global_step - 1, float(loss) if known else math.nan)  # type: ignore[arg-type]

    def close(self, result: dict[str, float], lost: Sequence[int]) -> None:
        """Write the result; the lowest live rank prints the run directory."""
        self.run.close(result)
        self._held.unresponsive = lambda: lost
        self._held.release()
        if session.comm.rank == min(set(range(session.comm.size)) - set(lost)):
            print(f"run directory: {self._run_dir}    summary: lsam inspect {self._run_dir}", flush=True)


def make_log(base: Optimizer, names: dict[Tensor, str], options: Options, number: int) -> ChainLog | None:
    """Return this rank's log, or None without one; collective.

    Args:
        base: the optimizer.
        names: the parameters' names.
        options: the script's options.
        number: number of optimizers that have a log already; the next ones' directories end in -2, -3, ...
    """
    comm = session.comm
    rma.require_equal(comm, "out", options.out)
    if options.out is None and not session.logs:
        return None
    start = datetime.fromtimestamp(comm.bcast(time.time()), timezone.utc)
    out = options.out or f"runs/{session.name}-{start:%Y%m%d-%H%M%S}"
    run_dir = Path(out if not number else f"{out}-{number + 1}")
    logs = part(options, LoggingOptions)

    rma.raise_on_all(comm, lambda: check_logging(logs))
    params = [p for group in base.param_groups for p in group["params"]]
    attributes = describe(comm, json.dumps(options.described()), options.seed, start, torch.device(params[0].device))
    layout = [(names.get(p, f"parameter.{i}"), tuple(p.shape)) for i, p in enumerate(params)]
    held = lock(run_dir, comm, session.replaced)
    try:
        rma.raise_on_all(comm, lambda: prepare(run_dir, options.described(), comm.rank, overwrite=options.overwrite))
        run = rma.raise_on_all(comm, lambda: RunLog(run_dir, comm.rank, layout, attributes, logs))
    except BaseException:
        held.release()
        raise
    return ChainLog(run, run_dir, held)


def group_sets(hvd: Any, size: int, comm: MPI.Intracomm) -> Any:  # noqa: ANN401 - a module; a ProcessSet
    """Return the process set of this rank's group of `size` neighbours; collective.

    Raises:
        InputError: `size` does not divide the number of ranks.
    """
    if size < 1 or comm.size % size:
        raise InputError(f"group_size: expected a divisor of the {comm.size} ranks, found {size}", everywhere=True)
    if size == comm.size:
        return hvd.global_process_set
    sets = [hvd.add_process_set(list(range(first, first + size))) for first in range(0, comm.size, size)]
    return sets[comm.rank // size]
