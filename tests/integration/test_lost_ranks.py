"""A rank that is killed with SIGKILL at any moment of its training: the others finish, and say that it was lost.

Open MPI only: MPICH ends the whole job at once. LSAM_KILL_TRIALS sets the number of trials; each has its own seed.
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
from tests.helpers.mpis import ROOT, Mpi, available, environment

RANKS = 4
TRIALS = int(os.environ.get("LSAM_KILL_TRIALS", "3"))
LONGEST = 3.0  # seconds from the first step to the kill, at most; an undisturbed job trains about twice as long
DEADLINE = 180.0


@pytest.fixture
def openmpi() -> Mpi:
    if "openmpi" not in available():
        pytest.skip("no Open MPI here")
    return available()["openmpi"]


@pytest.mark.slow("kills ranks at random moments")
@pytest.mark.parametrize("seed", range(TRIALS))
def test_the_others_finish_and_say_who_was_lost(openmpi: Mpi, seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    victim, delay = chance.randrange(RANKS), chance.uniform(0, LONGEST)
    while not killed(openmpi, tmp_path / f"{delay:.3f}", victim, delay):
        delay /= 2  # it had ended before


@pytest.mark.slow("waits until a rank counts as lost")
def test_the_rank_that_looks_at_the_center_dies_there(openmpi: Mpi, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from mpi4py import MPI; import lsam_hpc.train.loop as loop, lsam_hpc.cli as cli\n"
        "if MPI.COMM_WORLD.rank == 0: loop._save = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.exit(cli.main(sys.argv[1:]))"
    )
    with job(openmpi, tmp_path, "-c", code, "train", "--steps", "100") as (mpirun, _):
        until(lambda: mpirun.poll() is not None, "the job's end", tmp_path)
    check(tmp_path, mpirun.returncode, victim=0)


def killed(mpi: Mpi, folder: Path, victim: int, delay: float) -> bool:
    """Kill a rank so many seconds after the first step and look at what the others left; False: it had ended before."""
    folder.mkdir()
    with job(mpi, folder, "-m", "lsam_hpc", "train", "--epochs", "240") as (mpirun, pids):
        # The progress bar appears when every rank has been set up: who dies before that leaves the others in MPI calls
        # that they make together.
        until(lambda: " 0/" in (folder / "said").read_text(), "the first step", folder)
        assert len(list((folder / "run").glob("rank-*.h5"))) == RANKS
        time.sleep(delay)  # any moment is good
        if not alive(pids[victim]):
            return False
        os.kill(pids[victim], signal.SIGKILL)
        until(lambda: mpirun.poll() is not None, "the job's end", folder)
        # mpirun may return before the last survivor has.
        until(lambda: not any(map(alive, pids.values())), "the survivors' end", folder)
    check(folder, mpirun.returncode, victim)
    return True


def check(folder: Path, code: int, victim: int) -> None:
    """Check what the survivors of a job left and said."""
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
    """Train on the ranks; yield mpirun and the ranks' process ids. What is left of the job at the end is killed.

    Its run, its output "said" and its shared memory lie in the folder.
    """
    memory, said = folder / "memory", folder / "said"
    memory.mkdir()
    places = {f"OMPI_MCA_{part}_backing_directory": str(memory) for part in ("osc_sm", "osc_rdma", "btl_sm")}
    program = shlex.join([mpi.python, *words, "--silent-after", "3", "--out", str(folder / "run")])
    # mpirun holds back lines that have not ended, as a progress bar's.
    command = mpi.command(RANKS, "--enable-recovery", "sh", "-c", f"exec {program} 2>>{shlex.quote(str(said))}")
    with said.open("ab") as file, subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment(**places), cwd=ROOT
    ) as process:  # fmt: skip
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
    """Return the rank of each process that a job has started, by process id."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it ended meanwhile
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    found: dict[int, int] = {}
    for pid in parents:
        above = pid
        while above != ancestor and above in parents:
            above = parents[above]
        if above == ancestor and (rank := _rank_of(pid)) is not None:
            found[pid] = rank
    return found


def alive(pid: int) -> bool:
    """Return whether a rank of a job still runs."""
    return _rank_of(pid) is not None


def _rank_of(pid: int) -> int | None:
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    ranks = [int(word.split(b"=")[1]) for word in words if word.startswith(b"OMPI_COMM_WORLD_RANK=")]
    return ranks[0] if ranks else None


def until(condition: Callable[[], bool], what: str, folder: Path) -> None:
    """Wait for a condition, and fail after the deadline with what the job has said."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, (
            f"{what} did not come within {DEADLINE:g} s\n{(folder / 'said').read_text()}"
        )
        time.sleep(0.02)
