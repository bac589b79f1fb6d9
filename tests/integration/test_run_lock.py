"""Two jobs in one run directory: the second one is refused while the first one runs, and resumes after its death."""

import json
import os
import signal
import subprocess
from contextlib import contextmanager

import pytest

from lsam_hpc.trajectory import Run, verify
from tests.helpers.mpis import ROOT, environment, run
from tests.helpers.waiting import wait_until

# Steps take 20 ms, as those of a larger network; a job does not wait for another one to end.
PROGRAM = """
import sys, time
import lsam_hpc.cli as cli
from lsam_hpc.rundir import lock
from lsam_hpc.train.checkpoint_scheduler import CheckpointScheduler
lock.PATIENCE = 0.1
step = CheckpointScheduler.step
CheckpointScheduler.step = lambda self, *before: (time.sleep(0.02), step(self, *before))
sys.exit(cli.main(sys.argv[1:]))
"""


def command(mpi, ranks, out, *words):
    return mpi.command(ranks, mpi.forked, "-c", PROGRAM, "train", "--out", str(out), *words)


def holder(out):
    return json.loads((out / "job.lock").read_text().splitlines()[0])


@contextmanager
def started(words):
    with subprocess.Popen(
        words,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment(SLURM_JOB_ID="4711"),
        cwd=ROOT,
        start_new_session=True,
    ) as job:
        try:
            yield job
        finally:
            if job.poll() is None:
                os.killpg(job.pid, signal.SIGKILL)


def test_a_second_job_ends_with_code_2_and_a_killed_one_is_resumed_at_once(mpi, tmp_path):
    out = tmp_path / "run"
    words = ("--steps", "1000000", "--checkpoint-every", "20")
    with started(command(mpi, 2, out, *words)) as first:
        wait_until(lambda: any((out / "checkpoints").glob("set-*.json")))
        held = holder(out)
        for more in (("--resume", "auto"), ("--overwrite",)):
            done = run(command(mpi, 1, out, *words, *more), 60)
            assert done.returncode == 2, done.stderr
            lines = [line for line in done.stderr.splitlines() if line.startswith("lsam train: ")]
            assert len(lines) == 1
            assert f"process {held['process']} on {held['host']}, job 4711" in lines[0]
        assert first.poll() is None
        assert holder(out) == held
        for process in held["processes"]:
            os.kill(process["number"], signal.SIGKILL)
        first.wait(30)
    words = ("--steps", "200", "--resume", "auto")
    done = run(command(mpi, 2, out, *words), 60)
    assert done.returncode == 0, done.stderr
    assert f"took over {out} from process {held['process']} on" in done.stderr
    assert "resuming from step" in done.stderr
    assert verify(Run(out)) == []
    assert not (out / "job.lock").exists()


def test_the_lock_is_removed_after_a_stop(mpi, tmp_path):
    with started(command(mpi, 2, tmp_path / "run", "--steps", "1000000")) as job:
        wait_until(lambda: (tmp_path / "run" / "rank-0001.h5").exists())
        held = holder(tmp_path / "run")
        os.kill(held["process"], signal.SIGUSR1)
        assert job.wait(60) == 3
    assert not (tmp_path / "run" / "job.lock").exists()


@pytest.mark.slow("five pairs of jobs")
def test_pairs_started_at_the_same_moment(mpi, tmp_path):
    for trial in range(int(os.environ.get("LSAM_PAIR_TRIALS", "5"))):
        out = tmp_path / str(trial)
        with (
            started(command(mpi, 1, out, "--steps", "150")) as one,
            started(command(mpi, 1, out, "--steps", "150")) as other,
        ):
            assert sorted([one.wait(60), other.wait(60)]) == [0, 2]
        logs = Run(out)
        assert verify(logs) == []
        assert logs.steps(0)["total_iteration"].tolist() == list(range(150))
        assert sorted(file.name for file in out.iterdir()) == ["checkpoints", "config.json", "rank-0000.h5"]
