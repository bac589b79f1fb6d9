"""Finds the point from which a job resumes: the newest checkpoint and the log of an earlier attempt."""

from __future__ import annotations

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
from lsam_hpc.trajectory import Earlier, RankLog
from lsam_hpc.trajectory.schema import rank_file
from lsam_hpc.util.log import get_logger

Layout = Sequence[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class ResumePoint:
    """What an earlier attempt saved for this rank; all fields are empty if the job starts from the beginning."""

    resumed: bool = False  # the run directory may exist already
    manifest: Manifest | None = None
    state: State | None = None  # None: a new rank, or one that had failed
    center: State | None = None  # on rank 0 only
    earlier: Earlier | None = None
    start: datetime | None = None  # start time of the run

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return float(self.state["seconds"]) if self.state is not None else 0.0


def find_resume_point(
    resume: str, options: dict[str, Any], run_dir: Path, layout: Layout, comm: MPI.Intracomm
) -> ResumePoint:
    """Return the point from which to resume; collective. Removes newer files, renames logs of dropped ranks.

    Args:
        resume: `--resume`.
        options: the job's options as given; a checkpoint has them as they were given to its job.
        run_dir: the run directory.
        layout: names and shapes of the parameters.
        comm: communicator of all ranks.

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
        rma.raise_on_all(comm, lambda: _set_logs_aside(run_dir, 0) if comm.rank == 0 else None)
        return ResumePoint(resumed=True)
    rma.raise_on_all(comm, lambda: checkpoint.check(manifest, layout, options))
    state = rma.raise_on_all(comm, lambda: checkpoint.load(folder, manifest, comm.rank))
    center = rma.raise_on_all(comm, lambda: _center(folder, manifest, state) if comm.rank == 0 else None)
    earlier = rma.raise_on_all(comm, lambda: _earlier(run_dir / rank_file(comm.rank), state))
    start = comm.bcast(None if earlier is None else earlier.log.attributes["start_time"])
    if comm.rank == 0:
        checkpoint.clear(folder, manifest)
        _set_logs_aside(run_dir, comm.size)
        get_logger(__name__).info("resuming from step %d of %d ranks", manifest.step, manifest.ranks)
    rma.barrier(comm)
    when = None if start is None else datetime.fromtimestamp(start, timezone.utc)
    return ResumePoint(resumed=True, manifest=manifest, state=state, center=center, earlier=earlier, start=when)


def _center(folder: Path, manifest: Manifest, state: State | None) -> State:
    """Return the center of the set, which the file of the lowest living rank holds."""
    if state is None:
        first = next(rank for rank, name in enumerate(manifest.files) if name is not None)
        state = checkpoint.load(folder, manifest, first)
        assert state is not None
    center: State = state["opt"]["center"]
    return center


def _earlier(path: Path, state: State | None) -> Earlier | None:
    if state is None or not path.exists():
        return None
    return Earlier(RankLog(path, partial=True), int(state["opt"]["sam"]["local_step"]))


def _set_logs_aside(run_dir: Path, ranks: int) -> None:
    """Rename the logs of ranks that the job no longer has: rank-0007.h5 becomes rank-0007.h5.old."""
    if not run_dir.is_dir():
        return
    for file in run_dir.glob("rank-*.h5"):
        if file.stem[5:].isdigit() and int(file.stem[5:]) >= ranks:
            file.replace(file.with_name(file.name + ".old"))
