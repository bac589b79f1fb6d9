"""`lsam monitor` on jobs whose logs stop, whose ranks are killed, and that are killed as a whole."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from lsam_hpc.errors import InputError
from lsam_hpc.tools import monitor
from tests.helpers.jobs import job, processes
from tests.helpers.mpis import Mpi, available, run
from tests.helpers.waiting import wait_until


def seen(out: Path) -> tuple[str, list[str]]:
    """Return the last line of the monitor, and the states of the ranks."""
    try:
        lines = monitor._look(out)[0].splitlines()
    except InputError:  # the job is making its files
        return "", []
    return lines[-1], [line.split("  ")[-1].strip() for line in lines[2:-1]]


def until(out: Path, text: str, states: list[str], seconds: float) -> None:
    """Wait until the monitor shows these states."""
    wait_until(
        lambda: text in (now := seen(out))[0] and now[1] == states,
        f"{text}, {states}",
        seconds,
        pause=0.1,
        details=lambda: f"{seen(out)}\n{(out.parent / 'said').read_text()}",
    )


@pytest.mark.slow("kills a rank, and waits until it counts as lost")
def test_a_log_that_stops_and_a_rank_that_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "openmpi" not in available():
        pytest.skip("no Open MPI")
    out = tmp_path / "run"
    with job(available()["openmpi"], out, "--enable-recovery", "--log-limit", "0.15", "--sketch-every", "0") as mpirun:
        until(out, "job: running on ", ["running", "running"], 60)
        monkeypatch.setattr(monitor, "SILENT", 1.0)
        until(out, "job: running on ", ["no log", "no log"], 30)
        rank_0, rank_1 = processes(out)
        os.kill(rank_1.number, signal.SIGKILL)
        until(out, "job: running on ", ["no log", "dead"], 5)
        os.kill(rank_0.number, signal.SIGUSR1)
        until(out, "job: stopped after a checkpoint of step ", ["stopped", "dead"], 30)
        mpirun.wait(30)


@pytest.mark.slow("kills and resumes a job")
def test_a_job_that_is_killed_and_resumed(mpi: Mpi, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with job(mpi, out, "--checkpoint-every", "20") as mpirun:
        until(out, "job: running on ", ["running", "running"], 60)
        wait_until(lambda: any((out / "checkpoints").glob("set-*.json")), "a checkpoint")
        mpirun.kill()
        for rank in processes(out):
            with suppress(ProcessLookupError):  # MPICH's proxy ends the others
                os.kill(rank.number, signal.SIGKILL)
        until(out, "have ended; the last checkpoint is of step ", ["dead", "dead"], 5)
        shown = run([mpi.python, "-m", "lsam_hpc", "monitor", str(out)], 60)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert "job: crashed: its processes on" in shown.stdout.splitlines()[-2]
    words = ("--out", str(out), "--steps", "200", "--resume", "auto")
    done = run(mpi.command(2, mpi.forked, "-m", "lsam_hpc", "train", *words), 60)
    assert done.returncode == 0, done.stderr
    assert seen(out) == ("job: finished", ["ended", "ended"])
