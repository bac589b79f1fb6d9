"""The comment of a Slurm job, with a stand-in for scontrol."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lsam_hpc.train import job_comment
from lsam_hpc.train.job_comment import JobComment


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The arguments of each call of scontrol."""
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "scontrol").write_text(
        f'#!/bin/sh\necho "$@" >>{tmp_path}/said; echo no >&2; test ! -e {tmp_path}/bad\n'
    )
    (tmp_path / "scontrol").chmod(0o755)
    (tmp_path / "said").touch()
    return tmp_path / "said"


def test_progress_and_end(said: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    comment = JobComment(2000, lambda: True)
    for step in (1, 2, 1500):  # only the first is written within five minutes
        comment.step(step)
    comment.end("stopped")
    monkeypatch.setattr(job_comment, "INTERVAL", 0.0)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "6")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    comment = JobComment(2000, lambda: True)
    comment.step(5000)
    comment.end("finished")
    assert said.read_text().splitlines() == [
        "update JobId=7 Comment=lsam: running, step 1 of 2,000",
        "update JobId=7 Comment=lsam: stopped, step 1,500 of 2,000",
        "update JobId=6_3 Comment=lsam: running, step 2,000 of 2,000",
        "update JobId=6_3 Comment=lsam: finished, step 2,000 of 2,000",
    ]


def test_other_ranks_and_other_systems_write_none(said: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    JobComment(10, lambda: True).end("finished")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    JobComment(10, lambda: False).end("finished")
    assert said.read_text() == ""


def test_the_lowest_rank_that_is_left_writes(said: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(job_comment, "INTERVAL", 0.0)
    lowest: list[bool] = []
    comment = JobComment(10, lambda: bool(lowest))
    comment.step(1)
    lowest.append(True)  # rank 0 was killed
    comment.end("stopped without 1 of 2 ranks")
    assert said.read_text() == "update JobId=7 Comment=lsam: stopped without 1 of 2 ranks, step 1 of 10\n"


def test_an_exception_is_a_failure(said: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "6")  # without a task: not an element of an array
    with pytest.raises(ValueError, match="why"), JobComment(10, lambda: True):
        raise ValueError("why")
    with JobComment(10, lambda: True):
        pass
    assert said.read_text() == "update JobId=7 Comment=lsam: failed, step 0 of 10\n"


def test_a_failure_is_reported_once(
    said: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (said.parent / "bad").touch()
    comment = JobComment(10, lambda: True)
    comment.end("stopped")
    comment.end("stopped")
    assert len(said.read_text().splitlines()) == 1
    line = "lsam-hpc: the job's comment was not written, and is not written again: no\n"
    assert capsys.readouterr().err == line
