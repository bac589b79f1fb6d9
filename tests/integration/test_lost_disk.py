"""A run directory that is full, read-only or gone: training goes on, and the result is written elsewhere."""

import json
import os
import random
import re
import shutil
import subprocess

import pytest
import torch

from lsam_hpc.trajectory import Run, verify
from tests.helpers.mpis import run

TRIALS = int(os.environ.get("LSAM_DISK_TRIALS", "2"))
# Runs shell commands at local steps of rank 0, given as JSON, and another one when training has ended.
PROGRAM = """
import json, subprocess, sys
import lsam_hpc.cli as cli
from lsam_hpc.rundir import elsewhere
from lsam_hpc.train import checkpoint
from lsam_hpc.train.checkpoint_scheduler import CheckpointScheduler
elsewhere.RETRIES = (0.1, 0.2)
during, after = json.loads(sys.argv[1]), sys.argv[2]
step, last_state = CheckpointScheduler.step, CheckpointScheduler.last_state
def stepped(self, *before):
    step(self, *before)
    if self._opt.comm.rank == 0 and (script := during.pop(str(self._opt.local_step), None)):
        subprocess.run(script, shell=True, check=True)
def stated(self):
    if self._opt.comm.rank == 0:
        subprocess.run(after, shell=True, check=True)
    self._opt.rendezvous()
    return last_state(self)
CheckpointScheduler.step, CheckpointScheduler.last_state = stepped, stated
sys.exit(cli.main(sys.argv[3:]))
"""
WORDS = ("--steps", "400", "--checkpoint-every", "50", "--flush-seconds", "0.1", "--resume", "auto")


def command(mpi, ranks, out, *words, during=None, after="true", python=None):
    scripts = json.dumps(during or {})
    return mpi.command(ranks, python or mpi.forked, "-c", PROGRAM, scripts, after, "train", "--out", str(out), *words)


def on_a_small_disk(size, disk, words, **env):
    """Run a job with a file system of its own on the folder `disk`, and copy the run out of it."""
    script = (
        'mount -t tmpfs -o size="$1" none "$2"\ndisk="$2"\nshift 2\n'
        '"$@" || code=$?\ncp -r "$disk/run" "$disk/../copy"\nexit ${code:-0}'
    )
    return run(["unshare", "-m", "sh", "-ec", script, "sh", size, str(disk), *words], 120, **env)


@pytest.fixture
def disk(tmp_path):
    """A folder to mount a file system on."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["unshare", "-m", "mount", "-t", "tmpfs", "none", str(folder)]
    if shutil.which("unshare") is None or subprocess.run(mount, capture_output=True, timeout=60).returncode:
        pytest.skip("no file system can be mounted here: that needs root")
    return folder


def check_saved(done, place, reason):
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "test error %" in done.stdout
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("lsam train: ")]
    match = re.fullmatch(
        rf"lsam train: .*/run: expected a directory that can be written, found: {reason}: "
        rf"the last checkpoint and center\.pt are in [^:]+:({place}/run-saved-[-\d]+)",
        line,
    )
    assert match, line
    return match[1]


def check_resumes(mpi, saved, steps):
    center = torch.load(f"{saved}/checkpoints/center.pt", weights_only=True)
    assert sum(value.numel() for value in center.values()) > 1000
    done = run(command(mpi, 2, saved, "--steps", str(steps), "--resume", "must"), 60)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 400 of 2 ranks" in done.stderr


def test_a_run_directory_that_is_removed_during_training(mpi, tmp_path):
    out, place = tmp_path / "run", tmp_path / "place"
    place.mkdir()
    env = {"TMPDIR": str(place), "SLURM_TMPDIR": str(tmp_path / "none")}
    # In one moment: while rm empties a folder, a rank could fail to write to it, write to it again, and fail once more.
    remove = f"mv {out} {tmp_path}/gone && rm -r {tmp_path}/gone"
    done = run(command(mpi, 2, out, *WORDS, during={60: remove}), 60, **env)
    saved = check_saved(done, place, "No such file or directory")
    assert done.stderr.count("checkpoint not written, training continues") == 2, done.stderr  # on each rank
    assert not out.exists()
    check_resumes(mpi, saved, 500)


@pytest.mark.slow("starts its ranks in a file system of their own")
def test_a_folder_that_becomes_read_only(mpi, disk, tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    folder = disk / "run" / "checkpoints"
    protect = f"mount --bind {folder} {folder} && mount -o remount,bind,ro {folder}"
    words = command(mpi, 2, disk / "run", *WORDS, after=protect, python=mpi.python)
    done = on_a_small_disk("64m", disk, words, SLURM_TMPDIR=str(place))
    check_saved(done, place, "Read-only file system")


@pytest.mark.slow("starts its ranks in a file system of their own")
def test_a_disk_that_is_full_at_the_end(mpi, disk, tmp_path):
    fill = f"cat /dev/zero >{disk}/filler 2>/dev/null || true"
    words = command(mpi, 2, disk / "run", *WORDS, after=fill, python=mpi.python)
    done = on_a_small_disk("64m", disk, words, TMPDIR=str(tmp_path))
    saved = check_saved(done, tmp_path, "No space left on device")
    assert not list((tmp_path / "copy").rglob("*.tmp"))
    check_resumes(mpi, saved, 500)


@pytest.mark.slow("starts its ranks in a file system of their own")
def test_a_disk_that_is_full_for_a_while(mpi, disk, tmp_path):
    fill = f"cat /dev/zero >{disk}/filler 2>/dev/null || true"
    words = command(
        mpi, 2, disk / "run", *WORDS, during={60: fill}, after=f"rm {disk}/filler; sleep 2", python=mpi.python
    )
    done = on_a_small_disk("64m", disk, words)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("checkpoint not written, training continues") == 2, done.stderr  # on each rank
    copy = tmp_path / "copy"
    assert (copy / "checkpoints" / "set-000000000400.json").exists()
    assert not list(copy.rglob("*.tmp"))
    logs = Run(copy)
    assert verify(logs) == []


@pytest.mark.slow("starts its ranks in a file system of their own")
def test_logs_leave_room_for_checkpoints(openmpi, disk):
    left = 1_000_000  # B, less than the reserve of 32 B per parameter and rank
    fill = f"head -c $(($(df --output=avail -B1 {disk} | tail -1) - {left})) /dev/zero >{disk}/filler"
    words = command(
        openmpi, 2, disk / "run", *WORDS, during={60: fill}, after=f"rm {disk}/filler", python=openmpi.python
    )
    done = on_a_small_disk("64m", disk, words)
    assert done.returncode == 0, done.stderr
    assert (
        "the log stops here and training continues: the disk has less than 1.7 MB left for checkpoints" in done.stderr
    )


@pytest.mark.slow("starts its ranks in a file system of their own")
@pytest.mark.timeout(60 + 60 * TRIALS)
def test_a_disk_that_is_full_at_random_moments(openmpi, tmp_path, disk):
    for number in range(TRIALS):
        full, freed = sorted(random.Random(number).sample(range(2, 160), 2))
        fill = f"cat /dev/zero >{disk}/filler 2>/dev/null || true"
        scripts = {full: fill, freed: f"rm {disk}/filler"}
        options = (*WORDS, "--budget", "per-rank")  # rank 0 takes 200 steps, and so runs both scripts
        words = command(openmpi, 2, disk / "run", *options, during=scripts, python=openmpi.python)
        done = on_a_small_disk("64m", disk, words, TMPDIR=str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        copy = tmp_path / "copy"
        assert (copy / "checkpoints" / "set-000000000400.json").exists()
        center = torch.load(copy / "checkpoints" / "center.pt", weights_only=True)
        assert all(torch.isfinite(values).all() for values in center.values())
        assert not list(copy.rglob("*.tmp"))
        log = Run(copy)
        assert verify(log) == []
        assert all(log.result(rank) for rank in range(2))
        shutil.rmtree(copy)
