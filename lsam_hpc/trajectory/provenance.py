"""Where a log comes from: code, machine, launcher."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

import lsam_hpc


def git_state(folder: str | Path = ".") -> tuple[str, int]:
    """Return a folder's commit and whether it has changes: ("", -1) outside a repository."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return commit, int(bool(_git(folder, "status", "--porcelain")))
    except (OSError, subprocess.SubprocessError):
        return "", -1


def launcher(env: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Return what started this process ("mpirun", "srun", "none") and the batch system's job id, "" outside one."""
    job = next((env[k] for k in ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID") if k in env), "")
    if "OMPI_COMM_WORLD_RANK" in env or "MPI_LOCALRANKID" in env:
        return "mpirun", job
    return ("srun" if "SLURM_STEP_ID" in env else "none"), job


def machine() -> dict[str, str]:
    """Return the root attributes that this process knows by itself."""
    started_by, job = launcher()
    return {"code_version": lsam_hpc.__version__, "host": socket.gethostname(), "launcher": started_by, "job_id": job}


def _git(folder: str | Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()
