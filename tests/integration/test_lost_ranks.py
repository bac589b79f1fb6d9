"""A rank is killed with SIGKILL at any moment of training: the others finish and report it as lost.

Open MPI only: MPICH ends the whole job at once. LSAM_KILL_TRIALS sets the number of trials, each with its own seed.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import torch

from lsam_hpc.trajectory import Run
from tests.helpers.mpis import ROOT, Mpi, environment

RANKS = 4
TRIALS = int(os.environ.get("LSAM_KILL_TRIALS", "3"))
LONGEST = 3.0  # s, latest kill after the first step; an undisturbed job trains about twice as long
DEADLINE = 180.0  # s


@pytest.mark.slow("kills ranks at random moments")
@pytest.mark.parametrize("seed", range(TRIALS))
def test_the_others_finish_and_name_the_lost_rank(openmpi: Mpi, seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    victim, delay = chance.randrange(RANKS), chance.uniform(0, LONGEST)
    while not killed(openmpi, tmp_path / f"{delay:.3f}", victim, delay):
        delay /= 2  # the job had ended before the kill


@pytest.mark.slow("waits until a rank counts as lost")
def test_the_rank_that_evaluates_the_center_is_killed(openmpi: Mpi, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from mpi4py import MPI; import lsam_hpc.train.ending as ending, lsam_hpc.cli as cli\n"
        "assert callable(ending._save_center)\n"
        "if MPI.COMM_WORLD.rank == 0: ending._save_center = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    with job(openmpi, tmp_path, "-c", code, "train", "--steps", "100") as (mpirun, _):
        until(lambda: mpirun.poll() is not None, "the job's end", tmp_path)
    check(tmp_path, mpirun.returncode, victim=0)


def killed(mpi: Mpi, folder: Path, victim: int, delay: float) -> bool:
    """Kill a rank `delay` seconds after the first step and check the others' results; False if it had ended before."""
    folder.mkdir()
    with job(mpi, folder, "-m", "lsam_hpc", "train", "--epochs", "240", "--flush-seconds", "0.1") as (mpirun, pids):
        # A rank killed before every rank has been set up leaves the others in collective calls.
        until(lambda: all_trained(folder), "the first step", folder)
        assert len(list((folder / "run").glob("rank-*.h5"))) == RANKS
        time.sleep(delay)  # any moment is good
        if not alive(pids[victim]):
            return False
        os.kill(pids[victim], signal.SIGKILL)
        until(lambda: mpirun.poll() is not None, "the job's end", folder)
        # mpirun may return before the last survivor ends.
        until(lambda: not any(map(alive, pids.values())), "the survivors' end", folder)
    check(folder, mpirun.returncode, victim)
    return True


def check(folder: Path, code: int, victim: int) -> None:
    """Check the output and the files of the survivors."""
    text = (folder / "said").read_text()
    assert code != 0, text
    assert re.search(rf"^rank {victim} +LOST ", text, re.MULTILINE), text
    assert f"1 of {RANKS} ranks were lost" in text
    with Run(folder / "run") as run:
        assert run.problems == []
        assert run.ranks == list(range(RANKS))
        for rank in run.ranks:
            assert np.isfinite(run.steps(rank)["loss"]).all()
            assert (run.result(rank) is None) == (rank == victim)
    center = torch.load(folder / "run" / "checkpoints" / "center.pt", weights_only=True)
    assert all(torch.isfinite(values).all() for values in center.values())


@contextmanager
def job(mpi: Mpi, folder: Path, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], dict[int, int]]]:
    """Start a job; yield mpirun and the ranks' process ids; kill remaining processes at the end.

    Its run, its output (file "said") and its shared memory are in the folder.
    """
    memory, said = folder / "memory", folder / "said"
    memory.mkdir()
    directories = {f"OMPI_MCA_{part}_backing_directory": str(memory) for part in ("osc_sm", "osc_rdma", "btl_sm")}
    program = shlex.join([mpi.python, *words, "--heartbeat-timeout", "3", "--out", str(folder / "run")])
    # mpirun buffers incomplete lines such as a progress bar's, so stderr goes to the file directly.
    command = mpi.command(RANKS, "--enable-recovery", "sh", "-c", f"exec {program} 2>>{shlex.quote(str(said))}")
    with (
        said.open("ab") as file,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment(**directories), cwd=ROOT
        ) as process,
    ):
        below: dict[int, int] = {}
        try:
            until(lambda: len(ranks_below(process.pid)) == RANKS, "the ranks' start", folder)
            below = ranks_below(process.pid)
            yield process, {rank: pid for pid, rank in below.items()}
        finally:
            for pid in [*filter(alive, below), *([process.pid] if process.poll() is None else [])]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def ranks_below(ancestor: int) -> dict[int, int]:
    """Return the rank of each process of a job, by process id."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # the process has ended
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    ranks: dict[int, int] = {}
    for pid in parents:
        above = pid
        while above != ancestor and above in parents:
            above = parents[above]
        if above == ancestor and (rank := _rank_of(pid)) is not None:
            ranks[pid] = rank
    return ranks


def alive(pid: int) -> bool:
    """Return True if a rank's process still runs."""
    return _rank_of(pid) is not None


def _rank_of(pid: int) -> int | None:
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    ranks = [int(word.split(b"=")[1]) for word in words if word.startswith(b"OMPI_COMM_WORLD_RANK=")]
    return ranks[0] if ranks else None


def all_trained(folder: Path) -> bool:
    """Return True once each rank has logged a step."""
    with suppress(ValueError, OSError):
        return all(len(Run(folder / "run").steps(rank)["loss"]) for rank in range(RANKS))
    return False


def until(condition: Callable[[], bool], event: str, folder: Path) -> None:
    """Wait for a condition; fail after the deadline with the job's output."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, (
            f"{event} did not come within {DEADLINE:g} s\n{(folder / 'said').read_text()}"
        )
        time.sleep(0.02)
