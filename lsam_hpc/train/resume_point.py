"""Finds the point from which a job resumes: the newest checkpoint and the log of an earlier attempt."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mpi4py import MPI

from lsam_hpc import rma
from lsam_hpc.errors import InputError
from lsam_hpc.train import checkpoint
from lsam_hpc.train.checkpoint import State
from lsam_hpc.train.manifest import Manifest, newest
from lsam_hpc.train.saved_chains import SavedChains
from lsam_hpc.trajectory import Earlier, RankLog
from lsam_hpc.trajectory.schema import rank_file, shard_file
from lsam_hpc.util.log import get_logger

Layout = Sequence[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class ResumePoint:
    """What an earlier attempt saved for this rank; all fields are empty if the job starts from the beginning."""

    resumed: bool = False  # the run directory may exist already
    manifest: Manifest | None = None
    state: State | None = None  # None: a new rank, or one that had failed
    center: State | None = None  # on rank 0 only; of a sharded chain each rank has its part
    earlier: Earlier | None = None
    earlier_part: Earlier | None = None  # the snapshots of this rank's part of a sharded chain
    start: datetime | None = None  # start time of the run

    @property
    def taken(self) -> int:
        """Local steps so far."""
        return 0 if self.state is None else _local_step(self.state)

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return float(self.state["seconds"]) if self.state is not None else 0.0


def find_resume_point(
    resume: str, options: dict[str, Any], run_dir: Path, layout: Layout, comm: MPI.Intracomm, *, parts: int = 1
) -> ResumePoint:
    """Return the point from which to resume; collective. Removes newer files, renames logs of dropped ranks.

    Args:
        resume: `--resume`.
        options: the job's options as given; a checkpoint has them as they were given to its job.
        run_dir: the run directory.
        layout: names and shapes of the parameters.
        comm: communicator of all ranks.
        parts: neighbouring ranks that hold a chain together. Default 1.

    Raises:
        InputError: a required checkpoint is missing, or a checkpoint does not fit this job; raised on all ranks.
    """
    if resume == "no":
        return ResumePoint()
    folder = run_dir / "checkpoints"
    manifest = comm.bcast(rma.raise_on_all(comm, lambda: newest(folder) if comm.rank == 0 else None))
    if manifest is None:
        if resume == "must":
            raise InputError(f"--resume: expected a checkpoint in {folder}, found none", everywhere=True)
        rma.raise_on_all(comm, lambda: _set_logs_aside(run_dir, set(), parts=False) if comm.rank == 0 else None)
        return ResumePoint(resumed=True)
    rma.raise_on_all(comm, lambda: checkpoint.check(manifest, layout, options))
    saved = SavedChains(folder, manifest)
    if options["mode"] == "lockstep" and saved.chains != comm.size // parts:  # a new chain would lag behind for ever
        text = f"--resume: expected {saved.chains} chains in lockstep, as in the checkpoint"
        raise InputError(f"{text}, found {comm.size // parts}", everywhere=True)
    sharded = options["shard"] != "none"
    chain, index = divmod(comm.rank, parts)
    state = rma.raise_on_all(comm, lambda: saved.load(chain, index, parts))
    center = rma.raise_on_all(comm, lambda: saved.center(index, parts) if sharded or comm.rank == 0 else None)
    log = run_dir / rank_file(chain)
    earlier = rma.raise_on_all(comm, lambda: _earlier(log, state) if index == 0 else None)
    kept = sharded and saved.parts == parts  # files of other parts cannot be continued
    shard = run_dir / shard_file(chain, index)
    earlier_part = rma.raise_on_all(comm, lambda: _earlier(shard, state) if kept else None)
    start = comm.bcast(None if earlier is None else earlier.log.attributes["start_time"])
    resumed = {number // parts for number, has_state in enumerate(comm.allgather(state is not None)) if has_state}
    if comm.rank == 0:
        checkpoint.clear(folder, manifest)
        _set_logs_aside(run_dir, resumed, parts=kept)
        get_logger(__name__).info("resuming from step %d of %d ranks", manifest.step, manifest.ranks)
    rma.barrier(comm)
    when = None if start is None else datetime.fromtimestamp(start, timezone.utc)
    return ResumePoint(
        resumed=True,
        manifest=manifest,
        state=state,
        center=center,
        earlier=earlier,
        earlier_part=earlier_part,
        start=when,
    )


def _earlier(path: Path, state: State | None) -> Earlier | None:
    if state is None or not path.exists():
        return None
    return Earlier(RankLog(path, partial=True), _local_step(state))


def _local_step(state: State) -> int:
    return int(state["opt"]["sam"]["local_step"])


def _set_logs_aside(run_dir: Path, chains: set[int], *, parts: bool) -> None:
    """Rename the logs of chains that are not continued: rank-0007.h5 becomes rank-0007.h5.old.

    Args:
        run_dir: the run directory.
        chains: those that are continued.
        parts: whether files of snapshots in parts are continued.
    """
    if not run_dir.is_dir():
        return
    for file in run_dir.glob("rank-*.h5"):
        match = re.fullmatch(r"rank-(\d{4,})(-shard-\d{4,})?\.h5", file.name)
        if match and (int(match[1]) not in chains or (match[2] and not parts)):
            file.replace(file.with_name(file.name + ".old"))
