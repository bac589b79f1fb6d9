"""Signals and time limits that end a job early."""

import os
import signal
import subprocess
import sys
import time

import pytest

from lsam_hpc import InputError
from lsam_hpc.train.signals import StopRequest, job_end


@pytest.fixture(autouse=True)
def _handlers_stay():
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_is_noticed():
    stop_request = StopRequest(["USR1", "SIGTERM"], None, 0)
    assert not stop_request.asked()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop_request.asked()
    assert stop_request.reason == "SIGTERM"


def test_a_second_signal_ends_the_process():
    code = (
        "import os, signal; from lsam_hpc.train.signals import StopRequest\n"
        "request = StopRequest(['USR1', 'TERM'], None, 0)\n"
        "os.kill(os.getpid(), signal.SIGUSR1); assert request.asked(); print('first', flush=True)\n"
        "os.kill(os.getpid(), signal.SIGTERM); print('second', flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("first\n", -signal.SIGTERM)


def test_the_same_signal_twice_at_once_counts_once():
    """As when both the batch system and the launcher deliver it."""
    stop_request = StopRequest(["USR1"], None, 0)
    for _ in range(3):
        os.kill(os.getpid(), signal.SIGUSR1)
        assert stop_request.reason == "SIGUSR1"


def test_signals_are_ignored_while_the_last_checkpoint_is_written():
    stop_request = StopRequest(["USR1", "TERM"], None, 0)
    os.kill(os.getpid(), signal.SIGUSR1)
    stop_request.ignore_signals()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop_request.reason == "SIGUSR1"


def test_a_signal_after_the_time_limit_does_not_end_the_process():
    stop_request = StopRequest(["USR1"], time.time() + 50, 60)
    assert stop_request.asked()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert stop_request.reason == "the job's time limit"


def test_the_time_limit_is_noticed():
    assert StopRequest([], time.time() + 50, 60).asked()
    assert not StopRequest([], time.time() + 70, 60).asked()


def test_the_job_s_end(monkeypatch):
    for name in ("SLURM_JOB_END_TIME", "SLURM_JOB_ID", "PBS_JOBID"):
        monkeypatch.delenv(name, raising=False)
    assert job_end() is None
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1700000000")
    assert job_end() == 1.7e9


def test_squeue_and_qstat_are_asked(monkeypatch, tmp_path):
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, text in (
        ("squeue", 'test "$*" = "-h -j 7 -o %e" && echo 2030-01-02T03:04:05'),
        ("qstat", 'test "$*" = "-f 8" && echo "    Walltime.Remaining = 600"'),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert job_end() == time.mktime((2030, 1, 2, 3, 4, 5, 0, 0, -1))
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    (tmp_path / "squeue").write_text('#!/bin/sh\ntest "$*" = "-h -j 7_2 -o %e" && echo 2030-01-02T03:04:05\n')
    assert job_end() == time.mktime((2030, 1, 2, 3, 4, 5, 0, 0, -1))
    monkeypatch.delenv("SLURM_JOB_ID")
    monkeypatch.setenv("PBS_JOBID", "8")
    assert job_end() == pytest.approx(time.time() + 600, abs=60)
    monkeypatch.setenv("PBS_JOBID", "9")
    assert job_end() is None


QSTAT = """Job Id: 8.server
    Job_Name = lsam
    job_state = R
    qtime = Wed Jan  2 03:00:00 2030
    Resource_List.ncpus = 4
    Resource_List.walltime = 36:00:30
    stime = Wed Jan  2 03:04:05 2030
    Variable_List = PBS_O_HOME=/home/me,PBS_O_LANG=C,
\tPBS_O_WORKDIR=/home/me
"""


def test_the_end_of_a_job_of_openpbs(monkeypatch, tmp_path):
    for name in ("SLURM_JOB_END_TIME", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "out").write_text(QSTAT)
    (tmp_path / "qstat").write_text(f"#!/bin/sh\ncat {tmp_path}/out\n")
    (tmp_path / "qstat").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("PBS_JOBID", "8.server")
    assert job_end() == time.mktime((2030, 1, 2, 3, 4, 5, 0, 0, -1)) + 36 * 3600 + 30
    for missing in ("stime = ", "walltime = "):
        (tmp_path / "out").write_text("".join(line for line in QSTAT.splitlines(True) if missing not in line))
        assert job_end() is None


def test_the_user_s_settings_do_not_change_what_squeue_prints(monkeypatch, tmp_path):
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    text = 'test -z "$SLURM_TIME_FORMAT$SQUEUE_USERS" && echo 2030-01-02T03:04:05 || echo 03:04'
    (tmp_path / "squeue").write_text(f"#!/bin/sh\n{text}\n")
    (tmp_path / "squeue").chmod(0o755)
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    for name, value in {**variables, "SLURM_TIME_FORMAT": "%H:%M", "SQUEUE_USERS": "other"}.items():
        monkeypatch.setenv(name, value)
    assert job_end() == time.mktime((2030, 1, 2, 3, 4, 5, 0, 0, -1))


@pytest.mark.parametrize("name", ["NONSENSE", "KILL", ""])
def test_bad_names(name):
    with pytest.raises(InputError, match="signals: expected"):
        StopRequest([name], None, 0)
