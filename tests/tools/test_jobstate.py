"""The states of a job and its ranks, from locks, manifests and logs that are written by hand."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lsam_hpc.rundir.holder import NAME, Holder, Progress, as_line
from lsam_hpc.rundir.processes import Process, this_process
from lsam_hpc.tools.jobstate import Job, RankLook, job_text, look_at, rank_state
from lsam_hpc.train.manifest import Manifest

HERE = this_process()
ENDED = replace(HERE, started="0")  # the id was used again
ELSEWHERE = Process("another host", 1, "2")
FRESH = RankLook(steps=10, age=2.0, ended=False, closed=False)
OLD, CLOSED, RESULT = replace(FRESH, age=100.0), replace(FRESH, closed=True), replace(FRESH, ended=True, closed=True)


def locked(folder: Path, *processes: Process, elsewhere: int = 0, age: float = 1.0, **progress: list[int]) -> None:
    """Write a lock of a job whose ranks have these processes."""
    holder = Holder("t", "4711", "n1", 9, 0, list(processes), elsewhere, list(range(len(processes))))
    (folder / NAME).write_bytes(as_line(holder) + as_line(Progress(**progress)))
    os.utime(folder / NAME, times=(time.time() - age,) * 2)


def saved(folder: Path, step: int, *, finished: bool) -> None:
    (folder / "checkpoints").mkdir()
    Manifest(step, [], {}, [], [], finished).write(folder / "checkpoints")


def seen(folder: Path, *ranks: RankLook, locks: bool = True) -> tuple[str, list[str]]:
    """Return the state of the job and those of its ranks."""
    job = look_at(folder, time.time(), locks=locks)
    over = job.is_over(ranks)
    text = job_text(folder, job, ranks, 20)
    return text, [rank_state(job, number, rank, over=over) for number, rank in enumerate(ranks)]


def test_a_job_here_that_runs(tmp_path: Path) -> None:
    locked(tmp_path, HERE, HERE, HERE, steps=[12, 12, 10])
    text, states = seen(tmp_path, FRESH, OLD, OLD)
    assert text == "job 4711: running on n1"
    assert states == ["running", "no log", "silent"]


def test_a_job_that_starts_or_resumes(tmp_path: Path) -> None:
    locked(tmp_path, HERE)
    assert seen(tmp_path) == ("job 4711: starting on n1", [])
    assert seen(tmp_path, CLOSED) == ("job 4711: starting on n1", ["starting"])  # the log of the earlier attempt


def test_a_dead_rank_here_and_one_elsewhere(tmp_path: Path) -> None:
    locked(tmp_path, HERE, ENDED, elsewhere=1, steps=[9, 9, 9], unresponsive=[2])
    text, states = seen(tmp_path, FRESH, FRESH, FRESH)
    assert text == "job 4711: running on n1"
    assert states == ["running", "dead", "dead"]


def test_a_crash_here_is_seen_at_once(tmp_path: Path) -> None:
    locked(tmp_path, ENDED, ENDED, steps=[9, 9])
    text, states = seen(tmp_path, FRESH, RESULT)
    assert text == "job 4711: crashed: its processes on n1 have ended; no checkpoint"
    assert states == ["dead", "ended"]
    saved(tmp_path, 1500, finished=False)
    assert seen(tmp_path, FRESH)[0].endswith("; the last checkpoint is of step 1,500")


def test_a_crash_elsewhere_is_seen_without_heartbeats_and_rows(tmp_path: Path) -> None:
    locked(tmp_path, ELSEWHERE, age=14.0, steps=[9])
    assert seen(tmp_path, OLD) == ("job 4711: running on n1", ["silent"])
    locked(tmp_path, ELSEWHERE, age=20.0, steps=[9])
    text, states = seen(tmp_path, OLD)
    assert text == "job 4711: crashed on n1: no heartbeat for 20 s, and no rows; no checkpoint"
    assert states == ["dead"]
    text, states = seen(tmp_path, FRESH)
    assert text == "job 4711: no heartbeat for 20 s, but ranks write rows: the rank on n1 that sends them may be dead"
    assert states == ["running"]


def test_a_suspended_job(tmp_path: Path) -> None:
    locked(tmp_path, HERE, age=40.0, steps=[10])
    text, states = seen(tmp_path, OLD)
    assert text == "job 4711: no heartbeat for 40 s, but processes on n1 run: it is suspended, or its disk fails"
    assert states == ["silent"]


def test_a_lock_that_is_being_written(tmp_path: Path) -> None:
    (tmp_path / NAME).touch()
    assert seen(tmp_path, FRESH) == ("job: starting", ["running"])
    locked(tmp_path, HERE, steps=[10])
    with (tmp_path / NAME).open("ab") as file:
        file.truncate((tmp_path / NAME).stat().st_size - 3)
    assert seen(tmp_path, FRESH) == ("job 4711: starting on n1", ["running"])


@pytest.mark.parametrize(
    ("finished", "step", "ranks", "text", "states"),
    [
        (True, 20, [RESULT, RESULT], "job: finished", ["ended", "ended"]),
        (True, 20, [RESULT, OLD], "job: finished, 1 of 2 ranks lost", ["ended", "dead"]),
        (None, 0, [RESULT, RESULT], "job: finished", ["ended", "ended"]),
        (
            False,
            20,
            [CLOSED, FRESH],
            "job: stopped after a checkpoint of step 20; --resume auto continues",
            ["stopped", "dead"],
        ),
        (
            False,
            12,
            [CLOSED, FRESH],
            "job: ended without a result; the last checkpoint is of step 12",
            ["stopped", "dead"],
        ),
        (None, 0, [CLOSED, FRESH], "job: ended without a result; no checkpoint", ["stopped", "dead"]),
    ],
)
def test_a_job_that_ended(
    tmp_path: Path, finished: bool | None, step: int, ranks: list[RankLook], text: str, states: list[str]
) -> None:
    if finished is not None:
        saved(tmp_path, step, finished=finished)
    assert seen(tmp_path, *ranks) == (text, states)


def test_a_run_without_a_lock_is_judged_by_its_logs(tmp_path: Path) -> None:
    assert seen(tmp_path, FRESH, OLD, RESULT, locks=False) == ("", ["running", "silent", "ended"])
    assert seen(tmp_path, RESULT, CLOSED, locks=False)[1] == ["ended", "stopped"]


def test_a_damaged_manifest(tmp_path: Path) -> None:
    saved(tmp_path, 12, finished=False)
    next((tmp_path / "checkpoints").iterdir()).write_text("{}")
    assert seen(tmp_path, CLOSED)[0] == "job: ended without a result; no checkpoint"


def test_a_late_row_is_allowed_for(tmp_path: Path) -> None:
    job = Job(locked=True, steps=[11])
    assert [rank_state(job, 0, OLD, over=False, late=late) for late in (30.0, 120.0)] == ["no log", "running"]
