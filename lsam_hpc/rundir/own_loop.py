"""The run directory of a training loop of your own."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from lsam_hpc import rma
from lsam_hpc.errors import InputError
from lsam_hpc.options.logging import LoggingOptions, check_logging
from lsam_hpc.options.option import keywords
from lsam_hpc.rundir.lock import lock
from lsam_hpc.rundir.parts import chain_part
from lsam_hpc.rundir.prepare import prepare
from lsam_hpc.rundir.runlog import RunLog, describe

if TYPE_CHECKING:
    from mpi4py import MPI


@contextmanager
def open_log(
    run_dir: str | Path,
    model: nn.Module,
    comm: MPI.Intracomm | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    **options: Any,  # noqa: ANN401 - of many types
) -> Iterator[RunLog]:
    """Return a context with this rank's log in a run directory, which all programs of `lsam` read; collective.

    Pass `on_exchange=log.exchange` and `state_callback=log.state_callback` to LSAM. Call `log.first_states(opt)` before
    the first step, `log.step(opt, step, loss)` after each step, and `log.last_states(opt)` and `log.close(opt.stats())`
    after the last one. While the context is open on any rank, the directory is locked; its end waits for all ranks.

    Args:
        run_dir: the run directory.
        model: names the parameters; the optimizer has all of `model.parameters()`, in this order.
        comm: communicator of the ranks. Default: COMM_WORLD.
        config: options of the run, for config.json. Default: none.
        seed: of the run. Default 0.
        overwrite: replace a run in the directory. Default False.
        options: of the logs, named as the options of `lsam train`, for example `snapshot_every="log"`.

    Raises:
        InputError: an option is unknown or out of range, or the directory holds a run, is in use or cannot be written;
            on all ranks alike.
    """
    from mpi4py import MPI

    comm = MPI.COMM_WORLD if comm is None else comm
    described = {"seed": seed, **(config or {})}

    def logging_options() -> LoggingOptions:
        if unknown := options.keys() - keywords(LoggingOptions(), LoggingOptions).keys():
            raise InputError(f"open_log: expected options of the logs, found {', '.join(sorted(unknown))}")
        check_logging(chosen := LoggingOptions(**options))
        return chosen

    chosen = rma.raise_on_all(comm, logging_options)
    text = rma.raise_on_all(comm, lambda: _as_json(described))
    start = datetime.fromtimestamp(comm.bcast(time.time()), timezone.utc)
    layout = [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    with lock(Path(run_dir), comm):
        rma.raise_on_all(comm, lambda: prepare(Path(run_dir), described, comm.rank, overwrite=overwrite))
        attributes = describe(comm, text, seed, start, next(model.parameters()).device)
        part = rma.raise_on_all(comm, lambda: chain_part(model, comm))
        with rma.raise_on_all(
            comm, lambda: RunLog(Path(run_dir), comm.rank, layout, attributes, chosen, part=part)
        ) as log:
            yield log
        rma.barrier(comm)  # the directory stays locked until all ranks have written their logs


def _as_json(config: Mapping[str, Any]) -> str:
    try:
        return json.dumps(config)
    except (TypeError, ValueError) as error:
        raise InputError(f"config: expected values that JSON can hold, found: {error}") from error
