"""A rank's log of a training job: steps, exchanges, and the states selected by the options."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from lsam_hpc.optim import Exchange
from lsam_hpc.options.logging import LOCKING, LoggingOptions, names_of, snapshots_of
from lsam_hpc.rundir.parts import ChainPart
from lsam_hpc.rundir.sketches import SketchLog, StateLog
from lsam_hpc.trajectory import CountSketch, Earlier, TrajectoryWriter, layer_groups
from lsam_hpc.trajectory.provenance import git_state, machine

if TYPE_CHECKING:
    from mpi4py import MPI

    from lsam_hpc.distributed.lsam import LSAM
    from lsam_hpc.optim.lsam import LocalLSAM


class RunLog:
    """The log of one rank's training; the ranks of a sharded chain have one log, which the first of them writes.

    Args:
        run_dir: the run directory; it must exist.
        rank: this process's rank.
        layout: (name, shape) of each parameter, in the order of the flat vectors.
        attributes: root attributes, from `describe`.
        options: options of the logs.
        earlier: the log of an earlier attempt, which this log continues and replaces. Default: none.
        reserve_bytes: free disk space to leave to checkpoints, B. Default 0.
        steps: expected number of this rank's steps; sketches are spaced so that they get at most a tenth of
            `options.log_limit`. Default: unknown, and `options.sketch_every` counts alone.
        period: least number of steps between exchanges. Default 1.
        curvature: whether the curvature is measured. Default False.
        taken: this rank's steps in earlier attempts. Default: those of `earlier`.
        part: this rank's part of a sharded chain, from `chain_part`. Default: the rank is a chain.
        earlier_part: the file of an earlier attempt with the snapshots of this part. Default: none.

    Attributes:
        writer: of the chain's log; None on ranks of a sharded chain that do not write it.

    Raises:
        InputError: the file exists already or cannot be made.
    """

    def __init__(
        self,
        run_dir: Path,
        rank: int,
        layout: Sequence[tuple[str, Sequence[int]]],
        attributes: Mapping[str, str | int | float],
        options: LoggingOptions,
        *,
        earlier: Earlier | None = None,
        reserve_bytes: int = 0,
        steps: int | None = None,
        period: int = 1,
        curvature: bool = False,
        taken: int = 0,
        part: ChainPart | None = None,
        earlier_part: Earlier | None = None,
    ) -> None:
        groups = layer_groups(layout, options.sketch_groups)
        states = names_of(options.sketch_states)
        sketch = (
            CountSketch(groups[-1].stop, groups, options.sketch_buckets, int(attributes["seed"]))
            if options.sketch_every
            else None
        )
        if part is not None:
            rank, attributes = part.chain, {**attributes, "ranks": part.chains}
        snapshots = snapshots_of(options) if rank == 0 or options.snapshot_ranks == "all" else None
        make_writer = partial(
            TrajectoryWriter,
            run_dir,
            rank,
            flush_seconds=options.flush_seconds,
            locking=LOCKING[options.hdf5_locking],
            reserve_bytes=reserve_bytes,
        )
        self.writer: TrajectoryWriter | None = None
        if part is None or part.leads:
            self.writer = make_writer(
                layout=layout,
                attributes=attributes,
                sketch=sketch,
                sketched=states,
                snapshots=snapshots if part is None else None,
                curvature=curvature,
                earlier=earlier,
                limit_bytes=int(1e6 * options.log_limit),
            )
        self._shard: TrajectoryWriter | None = None  # of the snapshots of this rank's part
        if part is not None and snapshots is not None:
            self._shard = make_writer(
                layout=part.layout,
                attributes=attributes,
                snapshots=snapshots,
                shard=part.comm.rank,
                earlier=earlier_part,
            )
        self.sketch_every = options.sketch_every
        if steps is not None and options.sketch_every:
            self.sketch_every = sketch_interval(options, len(groups), steps, period)
        last = (taken or (earlier.steps if earlier else 0)) or -1  # equal on all ranks of a chain
        sketches = None if sketch is None else SketchLog(self.writer, sketch, states, part)
        in_full = self.writer if part is None else self._shard
        logs_states = snapshots is not None or sketches is not None
        self.state_callback = StateLog(sketches, in_full, self.sketch_every, last) if logs_states else None

    def exchange(self, record: Exchange) -> None:
        """Log an exchange."""
        if self.writer is not None:
            columns = dict(vars(record))
            self.writer.exchange(iteration=columns.pop("step"), staleness=record.staleness, **columns)

    def step(self, opt: LSAM, global_step: int, loss: float) -> None:
        """Log the step that an optimizer has just taken.

        Args:
            opt: the optimizer.
            global_step: the step's number among those of all ranks.
            loss: mini-batch loss.
        """
        norms = {"grad_norm": float(opt.grad_norm), "perturbation_norm": float(opt.perturbation_norm)}
        self.add_step(**self.columns(opt, global_step), loss=loss, **norms)

    def add_step(self, **columns: float) -> None:
        """Log a step that ends now, see `TrajectoryWriter.step`."""
        if self.writer is not None:
            self.writer.step(**columns)

    def curvature(self, **columns: float) -> None:
        """Log a measurement of the curvature, see `TrajectoryWriter.curvature`."""
        if self.writer is not None:
            self.writer.curvature(**columns)

    @staticmethod
    def columns(opt: LSAM, global_step: int) -> dict[str, float]:
        """Return what the host knows of the step that an optimizer has just taken; arguments as of `step`."""
        return {
            "iteration": opt.local_step - 1,
            "total_iteration": global_step,
            "center_distance": opt.center_distance,
            "lr": opt.param_groups[0]["lr"],
            "rho": opt.param_groups[0]["rho"],
        }

    def first_states(self, opt: LocalLSAM) -> None:
        """Log the sample and the center before the first step; without effect in a run that is resumed after it."""
        if self.state_callback is not None and opt.local_step == 0:
            opt.show()

    def last_states(self, opt: LocalLSAM) -> None:
        """Log the present sample and center, in full if snapshots are taken: at the end of a run."""
        if self.state_callback is not None:
            self.state_callback.whole = True
            opt.show()
            self.state_callback.whole = False

    def flush(self) -> None:
        """Write all rows logged so far to the files, where readers see them."""
        for writer in self._writers:
            writer.flush()

    def close(self, result: Mapping[str, float] | None = None) -> None:
        """Write the remaining rows, for a finished run its result (keys: `schema.RESULT`) too, and close the files."""
        for writer in self._writers:
            writer.close(result if writer is self.writer else None)

    @property
    def _writers(self) -> list[TrajectoryWriter]:
        return [writer for writer in (self.writer, self._shard) if writer is not None]

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def sketch_interval(options: LoggingOptions, groups: int, steps: int, period: int) -> int:
    """Return the least interval, in steps, with which all sketches of a rank get at most a tenth of the log's limit.

    Args:
        options: of the logs, with `sketch_every` above 0.
        groups: number of layer groups.
        steps: of this rank.
        period: least number of steps between exchanges.
    """
    size = 4 * options.sketch_buckets * groups * len(names_of(options.sketch_states))
    most = max(1, int(1e5 * options.log_limit / size))  # number of sketches of each state
    every = options.sketch_every
    return every if steps / max(period, every) <= most else max(every, math.ceil(steps / most))


def describe(
    comm: MPI.Intracomm, config: str, seed: int, start: datetime, device: torch.device
) -> dict[str, str | int | float]:
    """Return the root attributes of this rank's log; collective.

    Args:
        comm: communicator of all ranks.
        config: the run's options, JSON.
        seed: the run's seed.
        start: start of the run, the same on every rank.
        device: this rank's device.
    """
    from mpi4py import MPI  # imported late: programs that only check options need no MPI

    vendor, numbers = MPI.get_vendor()
    commit, dirty = comm.bcast(git_state() if comm.rank == 0 else None)
    return {
        **machine(),
        "git_commit": commit,
        "git_dirty": dirty,
        "created": start.isoformat(timespec="seconds"),
        "start_time": start.timestamp(),
        "config": config,
        "ranks": comm.size,
        "seed": seed,
        "mpi_library": f"{vendor} {'.'.join(map(str, numbers))}",
        "torch_version": str(torch.__version__),
        "device": str(device),
    }
