"""The state of a run's job, from its lock and its manifests, and of its ranks, from their logs besides."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from lsam_hpc.errors import InputError
from lsam_hpc.rundir.holder import NAME, Holder, read_lock
from lsam_hpc.rundir.processes import lives
from lsam_hpc.train.manifest import Manifest, manifests, parsed

HEARTBEATS = 15.0  # s without a heartbeat, of which there is one each 5 s, after which a job elsewhere may have ended
SILENT = 30.0  # s without a row; ranks write theirs every 5
GONE = 300.0  # s without a row or heartbeat after which the monitor does not wait any more


@dataclass(frozen=True)
class RankLook:
    """What a rank's log says."""

    steps: int  # local steps taken
    age: float  # s since the last row
    ended: bool  # it holds a result
    closed: bool  # by its writer: the rank was not killed


@dataclass(frozen=True)
class Job:
    """What the lock of a run says; without arguments: that there is none."""

    holder: Holder | None = None
    locked: bool = False
    silence: float = 0.0  # s since the last heartbeat
    alive: bool | None = None  # whether its processes on this machine run; None if it has none here
    dead: Collection[int] = ()  # ranks
    lost: Collection[int] = ()  # those of `dead` without a heartbeat whose processes run, or are on another machine
    total: int | None = None  # steps of all ranks that it will take; None: not known
    steps: Sequence[int] = ()  # of the ranks; empty before training starts
    locks: bool = False  # a job of this kind has a lock while it runs

    @property
    def name(self) -> str:
        """The job with its number in the batch system, if it has one."""
        return f"job {self.holder.job}" if self.holder is not None and self.holder.job else "job"

    @property
    def crashed(self) -> bool:
        """All its processes have ended, and its lock is still there."""
        return self.locked and self.alive is False and self.holder is not None and not self.holder.elsewhere

    def is_over(self, ranks: Collection[RankLook]) -> bool:
        """Return whether the job has ended."""
        if self.locked:
            quiet = self.silence > HEARTBEATS and all(rank.age > HEARTBEATS for rank in ranks)
            return self.crashed or (quiet and not self.alive)
        return self.locks or all(rank.ended or rank.closed for rank in ranks)


def look_at(run_dir: Path, now: float, *, locks: bool) -> Job:
    """Return what the lock of a run says.

    Args:
        run_dir: the run directory.
        now: the time, seconds since 1970; the clock of the file system may differ a little.
        locks: whether the run's job has a lock while it runs.
    """
    seen = read_lock(run_dir / NAME)
    if seen is None:
        return Job(locks=locks)
    silence = max(0.0, now - seen.touched)
    if (holder := seen.holder) is None:
        return Job(locked=True, silence=silence)
    gone = {rank for rank, process in zip(holder.ranks, holder.processes, strict=False) if lives([process]) is False}
    return Job(
        holder,
        locked=True,
        silence=silence,
        alive=lives(holder.processes),
        dead=gone | set(seen.progress.unresponsive),
        lost=set(seen.progress.unresponsive) - gone,
        total=seen.progress.total,
        steps=seen.progress.steps,
        locks=locks,
    )


def rank_state(job: Job, rank: int, log: RankLook, *, over: bool, late: float = SILENT) -> str:
    """Return the state of a rank.

    Args:
        job: its job.
        rank: its number.
        log: what its log says.
        over: whether the job has ended.
        late: s after which a row is missing. Default 30.

    Returns:
        ended: it wrote its result; starting: no step yet; running: it wrote rows; no log: it trains, and writes none;
        silent: neither steps nor rows; stopped: it ended without a result; dead: it was killed.
    """
    if log.ended:
        return "ended"
    if log.closed and (job.locked or over):
        return "starting" if job.locked and not over and not job.steps else "stopped"
    if over or rank in job.dead:
        return "dead"
    if log.age <= late:
        return "running"
    return "no log" if rank < len(job.steps) and job.steps[rank] > log.steps else "silent"


def job_text(run_dir: Path, job: Job, ranks: Sequence[RankLook], global_step: int) -> str:
    """Return the state of the job, a line; "" if only the rows' ages tell it.

    Args:
        run_dir: the run directory.
        job: what its lock says.
        ranks: what the logs say; empty if they cannot be read.
        global_step: steps of all ranks in the logs.
    """
    over = job.is_over(ranks)
    manifest = _newest(run_dir / "checkpoints")
    saved = "no checkpoint" if manifest is None else f"the last checkpoint is of step {manifest.step:,}"
    if job.locked:
        where = "" if job.holder is None else f" on {job.holder.host}"
        if job.crashed:
            return f"{job.name}: crashed: its processes{where} have ended; {saved}"
        if job.silence <= HEARTBEATS:
            return f"{job.name}: {'running' if job.steps else 'starting'}{where}"
        silence = f"no heartbeat for {job.silence:.0f} s"
        if over:
            return f"{job.name}: crashed{where}: {silence}, and no rows; {saved}"
        if job.alive:
            return f"{job.name}: {silence}, but processes{where} run: it is suspended, or its disk fails"
        return f"{job.name}: {silence}, but ranks write rows: the rank{where} that sends them may be dead"
    if not over:
        return ""
    if (manifest is not None and manifest.finished) or any(rank.ended for rank in ranks):
        lost = sum(not rank.ended for rank in ranks)
        return "job: finished" + (f", {lost} of {len(ranks)} ranks lost" if lost else "")
    if manifest is not None and manifest.step >= global_step:
        return f"job: stopped after a checkpoint of step {manifest.step:,}; --resume auto continues"
    return f"job: ended without a result; {saved}"


def _newest(folder: Path) -> Manifest | None:
    """Return the newest manifest, None if there is none that can be read."""
    try:
        files = manifests(folder)
        return parsed(files[-1]) if files else None
    except (OSError, InputError):  # the job removes old ones at any time
        return None
