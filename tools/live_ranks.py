"""What `lsam report --live` shows: each look reads only new rows of the logs, and keeps curves of bounded length."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.report.history import History
from lsam_hpc.tools.jobstate import SILENT, Job, RankLook, job_text, look_at, rank_state
from lsam_hpc.tools.monitor import LOSSES, MINUTE, Status
from lsam_hpc.trajectory import RankLog
from lsam_hpc.trajectory.openfile import is_closed

ROWS = 100_000  # largest number of rows that a look reads of all ranks together, about 0.2 s
LEAST = 1_000  # rows that it may read of each table of a rank
RECENT = 20_000  # rows over which a rate is measured, at most
DRAWN = 8  # ranks whose curves are drawn at a time
CURVES = ("loss", "staleness", "distance")
TABLES = ("step", "exchange")


class Chain:
    """A rank's log, as far as it was read.

    Args:
        path: of its file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start()

    def _start(self) -> None:
        self.log: RankLog | None = None
        self.curves = {name: History() for name in CURVES}
        self.behind = False  # rows of the last read are not all that the file holds
        self._file = (0, 0)
        self._places = dict.fromkeys(TABLES, 0)
        self._times, self._losses = np.empty(0), np.empty(0)
        self._stale, self._most_stale, self._rejected, self._exchanges = 0, 0, 0, 0
        self._step, self._global_step, self._distance = 0, 0, math.nan
        self._closed, self._ended = False, False

    def read(self, most: int) -> None:
        """Read new rows, at most so many of each table.

        Raises:
            InputError: the file cannot be read.
        """
        try:
            about = self.path.stat()
        except OSError as error:
            raise InputError(f"{self.path}: expected a readable file, found: {error.strerror}") from error
        if self._file != (about.st_dev, about.st_ino):  # a job that resumes begins another file
            self._start()
            self._file = (about.st_dev, about.st_ino)
        if self.log is None:
            self.log = RankLog(self.path, partial=True)
        closed = is_closed(self.path)  # before its rows are read
        new = self.log.after(self._places, most)
        if any(part.stored < self._places[name] for name, part in new.items()):
            self._start()  # it was overwritten in place
            return self.read(most)
        self._places = {name: part.place for name, part in new.items()}
        self.behind = any(part.place < part.stored and len(part.rows["time"]) for part in new.values())
        self._steps(new["step"].rows)
        self._exchange(new["exchange"].rows)
        self._closed = closed
        self._ended = closed and not self.behind and self.log.result is not None
        return None

    def status(self, now: float) -> Status:
        """Return the rank's progress at a time, s since 1970; the log was read once."""
        assert self.log is not None
        about = self.log.attributes
        last = float(self._times[-1]) if len(self._times) else 0.0
        recent = self._times[self._times >= last - MINUTE]
        span = float(np.ptp(recent)) if len(recent) else 0.0
        return Status(
            rank=self.log.rank,
            host=str(about["host"]),
            step=self._step,
            global_step=self._global_step,
            loss=float(self._losses.mean()) if len(self._losses) else math.nan,
            rate=(len(recent) - 1) / span if span else math.nan,
            staleness_mean=self._stale / self._exchanges if self._exchanges else math.nan,
            staleness_max=self._most_stale,
            distance=self._distance,
            refused=self._rejected,
            age=max(0.0, now - float(about["start_time"]) - last),
            ended=self._ended,
            closed=self._closed,
        )

    @property
    def problems(self) -> list[str]:
        """Damaged parts of the log; rows that the writer has not finished are no problem."""
        lines = self.log.problems if self.log is not None else []
        lines[:] = [line for line in lines if "incomplete" not in line][-3:]
        return lines

    def _steps(self, rows: dict[str, Any]) -> None:
        if not len(rows["time"]):
            return
        self.curves["loss"].add(rows["time"], rows["loss"])
        self._times = np.concatenate([self._times, rows["time"]])[-RECENT:]
        self._losses = np.concatenate([self._losses, rows["loss"]])[-LOSSES:].astype(np.float64)
        self._step, self._global_step = int(rows["iteration"][-1]) + 1, int(rows["total_iteration"][-1]) + 1

    def _exchange(self, rows: dict[str, Any]) -> None:
        if not len(rows["time"]):
            return
        self.curves["staleness"].add(rows["time"], rows["staleness"])
        self.curves["distance"].add(rows["time"], rows["center_distance"])
        self._exchanges += len(rows["time"])
        self._stale += int(rows["staleness"].sum())
        self._most_stale = max(self._most_stale, int(rows["staleness"].max()))
        self._rejected += int(np.count_nonzero(rows["accepted"] == 0))
        self._distance = float(rows["center_distance"][-1])


class LiveRun:
    """A run directory that is looked at again and again.

    Args:
        path: the run directory.

    Raises:
        InputError: it is none.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise InputError(f"{path}: expected a run directory, found nothing")
        if not path.is_dir():
            raise InputError(f"{path}: expected a run directory for --live, found a file")
        self._path = path
        self._chains: dict[int, Chain] = {}
        self._total: int | None = None
        self._counts: dict[int, tuple[int, float]] = {}  # steps of each rank, and when it had surely not yet taken them
        self._heartbeats = (0.0, 0.0)  # of the lock, s since 1970: the one before the last, and the last
        self._config()

    def look(self, first: int = 0) -> dict[str, Any]:
        """Read what is new; return what the page shows, as numbers and texts for JSON.

        Args:
            first: lowest rank whose curves are wanted, of `DRAWN`. Default 0.
        """
        began = time.monotonic()
        config, problems = self._config(), []
        for file in self._path.iterdir():
            if match := re.fullmatch(r"rank-(\d{4,9})\.h5", file.name):
                self._chains.setdefault(int(match[1]), Chain(file))
        for rank, chain in sorted(self._chains.items()):
            try:
                chain.read(max(LEAST, ROWS // len(self._chains)))
            except InputError as error:
                problems.append(str(error))
            problems += [f"rank {rank}: {line}" for line in chain.problems]
        now = time.time()
        chains = {rank: chain for rank, chain in sorted(self._chains.items()) if chain.log is not None}
        job = look_at(self._path, now, locks="out" in config)
        ranks = {rank: chain.status(now) for rank, chain in chains.items()}
        if job.locked and now - job.silence > self._heartbeats[1] + 0.5:
            self._heartbeats = self._heartbeats[1], now - job.silence
        looks = [RankLook(status.step, status.age, status.ended, status.closed) for status in ranks.values()]
        over = bool(looks or job.locked) and job.is_over(looks)
        late = config.get("flush_seconds")
        late = max(SILENT, 2 * late) if isinstance(late, (int, float)) else SILENT
        shown = [
            self._row(replace(status, state=rank_state(job, rank, seen, over=over, late=late)), job, now, over=over)
            for (rank, status), seen in zip(ranks.items(), looks, strict=True)
        ]
        step = max((status.global_step for status in ranks.values()), default=0)
        expected = max((int(chain.log.attributes["ranks"]) for chain in chains.values() if chain.log), default=0)
        missing = [f"no log of rank {rank}" for rank in range(min(expected, 100_000)) if rank not in chains]
        drawn = [rank for rank in chains if rank >= first][:DRAWN]
        text = job_text(self._path, job, looks, step) if looks or job.locked else "waiting for the run's files"
        return {
            "name": self._path.resolve().name,
            "time": now,
            "job": text or ("job: ended" if over else "job: running, as its rows say"),
            "over": over,
            "trouble": bool(re.search("crashed|no heartbeat|without a result|lost", text)),
            "heartbeat": job.silence if job.locked else None,
            "progress": self._progress(job, config, shown, step, over=over),
            "ranks": shown,
            "all": len(chains),
            "problems": ([*missing[:3], f"and {len(missing) - 3} more"] if len(missing) > 4 else missing)
            + problems[:8],
            "behind": any(chain.behind for chain in chains.values()),
            "first": drawn[0] if drawn else 0,
            "drawn": DRAWN,
            "curves": {name: {rank: _curve(chains[rank].curves[name]) for rank in drawn} for name in CURVES},
            "seconds": time.monotonic() - began,
        }

    def _config(self) -> dict[str, Any]:
        file = self._path / "config.json"
        try:
            config = json.loads(file.read_text())
        except FileNotFoundError as error:
            if (self._path / "job.lock").exists():  # a job that starts has not written it yet
                return {}
            raise InputError(f"{self._path}: expected a run directory with config.json, found none") from error
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: expected JSON, found: {error}") from error
        return config if isinstance(config, dict) else {}

    def _row(self, status: Status, job: Job, now: float, *, over: bool) -> dict[str, Any]:
        steps = max(status.step, job.steps[status.rank] if status.rank < len(job.steps) else 0)
        before, since = self._counts.get(status.rank, (0, now - status.age))
        if steps > max(before, status.step):
            since = max(since, self._heartbeats[0])  # the lock says so; rows may come later
        self._counts[status.rank] = steps, since
        lost = status.state == "dead" and not over and status.rank in job.lost
        numbers = {name: _number(getattr(status, name)) for name in ("loss", "rate", "staleness_mean", "distance")}
        return {
            "rank": status.rank,
            "host": status.host,
            "state": "lost" if lost else status.state,
            "step": steps,
            **numbers,
            "staleness_max": status.staleness_max,
            "refused": status.refused,
            "row": status.age,
            "sign": min(status.age, max(0.0, now - since)),
        }

    def _progress(
        self, job: Job, config: dict[str, Any], ranks: Sequence[dict[str, Any]], step: int, *, over: bool
    ) -> dict[str, Any]:
        self._total = job.total or self._total
        steps = config.get("steps")
        total = self._total or (steps if isinstance(steps, int) else None)
        rate = sum(rank["rate"] or 0.0 for rank in ranks if rank["state"] == "running")
        left = (total - step) / rate if total and rate and not over else None
        return {"step": step, "total": total, "rate": rate, "left": None if left is None else max(0.0, left)}


def _curve(history: History) -> dict[str, list[float | None]]:
    names = ("x", "mean", "low", "high")
    return {name: [_number(value) for value in values] for name, values in zip(names, history.curve(), strict=True)}


def _number(value: float) -> float | None:
    """Return a number that JSON knows; 6 digits are enough for a page."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
