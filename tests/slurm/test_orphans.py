"""A step's daemon, slurmstepd, is killed: the ranks below it write a checkpoint and end with code 3 within 10 s."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from lsam_hpc.trajectory import Run
from tests.helpers.mpis import ROOT, Mpi
from tests.helpers.slurm import Cluster
from tests.helpers.waiting import wait_until
from tests.slurm.conftest import Job
from tests.slurm.test_jobs import LIMIT, SRUN, process_of

pytestmark = [pytest.mark.slow("needs a Slurm"), pytest.mark.timeout(400)]
SCRIPT = """#!/bin/bash
#SBATCH --nodes=1 --ntasks=2 --output=lsam-%j.out
export train="{python} -m lsam_hpc train --epochs 10000 --flush-seconds 0.2 --out runs/lsam-$SLURM_JOB_ID"
{launch} sh -c 'exec 3>&2 2>/dev/null; (exec $train 2>&3); echo $? >code-$SLURM_PROCID'
"""


@pytest.mark.parametrize("which", ["openmpi", "mpich"])
def test_orphans_write_a_checkpoint(cluster: Cluster, request: pytest.FixtureRequest, folder: Path, which: str) -> None:
    mpi: Mpi = request.getfixturevalue(which)
    script = folder / "job.sh"
    script.write_text(SCRIPT.format(launch=SRUN[which], python=mpi.python))
    job = Job(cluster, cluster.submit("--chdir", str(folder), str(script), PYTHONPATH=str(ROOT)), folder)
    job.until_step(100, LIMIT)
    assert "lsam: running, step " in cluster.call("scontrol", "show", "job", job.number)
    rank = process_of(job, 0)
    daemon = int(_status(_status(rank, "PPid"), "PPid"))  # above the shell
    assert _status(daemon, "Name") == "slurmstepd"
    os.kill(daemon, signal.SIGKILL)
    files = [folder / f"code-{rank}" for rank in (0, 1)]
    wait_until(lambda: all(file.exists() and file.read_text()[-1:] == "\n" for file in files), "the end", 10)
    assert [file.read_text() for file in files] == ["3\n"] * 2
    with Run(job.run) as run:
        taken = sum(len(run.steps(rank)["loss"]) for rank in (0, 1))
    assert "lsam: stopped, step " in cluster.call("scontrol", "show", "job", job.number)
    assert job.newest is not None
    assert job.newest.step >= taken - 1


def _status(pid: int | str, name: str) -> str:
    """Return a field of a process's status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith(f"{name}:"))
