"""Where a job goes on: the newest checkpoint of an attempt before it, and what that attempt logged."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from mpi4py import MPI

from lsam_hpc import rma
from lsam_hpc.errors import InputError
from lsam_hpc.train import checkpoint
from lsam_hpc.train.checkpoint import Manifest, State
from lsam_hpc.train.config import TrainConfig
from lsam_hpc.trajectory import Earlier, RankLog
from lsam_hpc.trajectory.schema import rank_file

Layout = Sequence[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Attempt:
    """What an earlier attempt left for this rank; nothing, if the job starts from the beginning."""

    resumed: bool = False  # the run directory is one to go on with
    manifest: Manifest | None = None
    state: State | None = None  # None: a rank that is new, or was lost
    center: State | None = None  # on rank 0
    earlier: Earlier | None = None
    start: datetime | None = None  # of the run

    @property
    def seconds(self) -> float:
        """Training time so far."""
        return float(self.state["seconds"]) if self.state is not None else 0.0


def find(config: TrainConfig, run_dir: Path, layout: Layout, comm: MPI.Intracomm) -> Attempt:
    """Return where to go on; collective. Nothing is changed on disk but for what `clear` and `retire` remove.

    Raises:
        InputError: there is no checkpoint and there must be one, or it does not fit this job; on all ranks alike.
    """
    if config.resume == "no":
        return Attempt()
    folder = run_dir / "checkpoints"
    manifest = comm.bcast(rma.agree(comm, lambda: checkpoint.newest(folder) if comm.rank == 0 else None))
    if manifest is None:
        if config.resume == "must":
            raise InputError(f"--resume: expected a checkpoint in {folder}, found none", everywhere=True)
        rma.agree(comm, lambda: _retire(run_dir, 0) if comm.rank == 0 else None)
        return Attempt(resumed=True)
    rma.agree(comm, lambda: checkpoint.check(manifest, layout, asdict(config)))
    state = rma.agree(comm, lambda: checkpoint.load(folder, manifest, comm.rank))
    center = rma.agree(comm, lambda: _center(folder, manifest, state) if comm.rank == 0 else None)
    found = rma.agree(comm, lambda: _earlier(run_dir / rank_file(comm.rank), state))
    start = comm.bcast(None if found is None else found.log.attributes["start_time"])
    if comm.rank == 0:
        checkpoint.clear(folder, manifest)
        _retire(run_dir, comm.size)
        print(f"lsam-hpc: going on from step {manifest.step} of {manifest.ranks} ranks", file=sys.stderr)
    rma.barrier(comm)
    when = None if start is None else datetime.fromtimestamp(start, timezone.utc)
    return Attempt(True, manifest, state, center, found, when)


def _center(folder: Path, manifest: Manifest, state: State | None) -> State:
    """Return the center that the set holds: that of the lowest rank that was not lost."""
    if state is None:
        first = next(rank for rank, name in enumerate(manifest.files) if name is not None)
        state = checkpoint.load(folder, manifest, first)
        assert state is not None
    found: State = state["opt"]["center"]
    return found


def _earlier(path: Path, state: State | None) -> Earlier | None:
    if state is None or not path.exists():
        return None
    return Earlier(RankLog(path, partial=True), int(state["opt"]["sam"]["local_step"]))


def _retire(run_dir: Path, ranks: int) -> None:
    """Take logs of ranks that the job does not have any more out of the run: rank-0007.h5 becomes rank-0007.h5.old."""
    if not run_dir.is_dir():
        return
    for file in run_dir.glob("rank-*.h5"):
        if file.stem[5:].isdigit() and int(file.stem[5:]) >= ranks:
            file.replace(file.with_name(file.name + ".old"))
