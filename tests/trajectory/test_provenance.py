"""Commit and launcher of a run."""

import subprocess

import pytest

from lsam_hpc.trajectory.provenance import git_state, launcher


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, ("none", "")),
        ({"OMPI_COMM_WORLD_RANK": "1"}, ("mpirun", "")),
        ({"MPI_LOCALRANKID": "0", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}, ("mpirun", "7")),
        ({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "PMIX_RANK": "0"}, ("srun", "7")),
        ({"SLURM_JOB_ID": "7"}, ("none", "7")),
        ({"PBS_JOBID": "12.host", "OMPI_COMM_WORLD_RANK": "0"}, ("mpirun", "12.host")),
    ],
)
def test_launcher(env, expected):
    assert launcher(env) == expected


def test_git_state(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state() == ("", -1)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "m"], check=True)
    commit, dirty = git_state()
    assert len(commit) == 40
    assert dirty == 0
    (tmp_path / "new").touch()
    assert git_state() == (commit, 1)
