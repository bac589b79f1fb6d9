"""SIGKILL to the launcher: its ranks write a checkpoint and end with code 3. SIGKILL to a rank that starts: all end."""

from __future__ import annotations

import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from lsam_hpc.trajectory import Run, verify
from tests.helpers.mpis import ROOT, Mpi, available, environment
from tests.helpers.waiting import wait_until

RANKS = 2
TRIALS = int(os.environ.get("LSAM_ORPHAN_TRIALS", "3"))
SECONDS = 10.0
# Writes the process ids of the rank and its parent, runs the rank and writes its exit code. The shell's own messages
# would end it, when the launcher is gone.
RANK = (
    "exec 3>&2 2>/dev/null; n=${OMPI_COMM_WORLD_RANK:-${PMI_RANK:-$PMIX_RANK}}; echo $$ $PPID >pid-$n; "
    '(exec "$@" 2>&3); echo $? >code-$n'
)


@contextmanager
def job(mpi: Mpi, folder: Path, *words: str, program: Sequence[str] = ()) -> Iterator[list[int]]:
    """Start `lsam train` with options, or another program; yield the launcher's process id and the ranks'.

    stdout and stderr go through the launcher, so that they break with it.
    """
    rank = [mpi.python, *(program or ["-m", "lsam_hpc", "train", "--out", str(folder / "run")])]
    flags, options = ([words[0]], words[1:]) if words and words[0].startswith("--enable") else ([], words)
    command = mpi.command(RANKS, *flags, "sh", "-c", RANK, "sh", *rank, *options)
    env = environment(PYTHONPATH=str(ROOT))
    env.pop("OMPI_MCA_osc", None)
    with (folder / "said").open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=env, cwd=folder)
    pids: list[int] = []
    try:
        files = [folder / f"pid-{rank}" for rank in range(RANKS)]
        wait_until(lambda: all(file.exists() and file.read_text()[-1:] == "\n" for file in files), "the ranks", 60)
        numbers = [[int(word) for word in file.read_text().split()] for file in files]
        pids = [pid for pid, _ in numbers]
        yield [numbers[0][1], *pids]
    finally:
        process.kill()
        process.wait()
        for pid in pids:  # each with its rank below it
            children = Path(f"/proc/{pid}/task/{pid}/children")
            with suppress(OSError):
                for child in children.read_text().split():
                    os.kill(int(child), signal.SIGKILL)


def codes(folder: Path, seconds: float = SECONDS) -> list[int]:
    """Return the ranks' exit codes."""
    files = [folder / f"code-{rank}" for rank in range(RANKS)]
    wait_until(
        lambda: all(file.exists() and file.read_text()[-1:] == "\n" for file in files),
        "the ranks' end",
        seconds,
        details=(folder / "said").read_text,
    )
    return [int(file.read_text()) for file in files]


def trains(folder: Path) -> bool:
    """Return True once each rank has logged a step."""
    with suppress(ValueError, OSError):
        return all(len(Run(folder / "run").steps(rank)["loss"]) for rank in range(RANKS))
    return False


@pytest.mark.slow("kills launchers")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("openmpi", ()),
        ("openmpi", ("--enable-recovery",)),
        # A rank waits in MPI for the other's step of about 1 s.
        ("openmpi", ("--enable-recovery", "--mode", "lockstep", "--stragglers", "pause:0.5:1")),
        ("openmpi", ("--group-size", "2")),
        ("mpich", ()),
    ],
)
def test_orphans_write_a_checkpoint(name: str, words: tuple[str, ...], tmp_path: Path) -> None:
    if name not in available():
        pytest.skip(f"no {name}")
    options = ("--epochs", "10000", "--flush-seconds", "0.1", "--checkpoint-every", "none")
    with job(available()[name], tmp_path, *(words or ("--seed", "1")), *options) as (launcher, *_):
        wait_until(lambda: trains(tmp_path), "the first steps", 60, pause=0.1, details=(tmp_path / "said").read_text)
        os.kill(launcher, signal.SIGKILL)
        assert codes(tmp_path) == [3] * RANKS
    sets = list((tmp_path / "run" / "checkpoints").glob("set-*.json"))
    assert len(sets) == 1
    with Run(tmp_path / "run") as run:
        assert verify(run) == []
        taken = sum(len(run.steps(rank)["loss"]) for rank in range(1 if "--group-size" in words else RANKS))
    assert int(sets[0].stem.split("-")[1]) >= taken - 1


# A loop that writes a file at its 20th step; with a handler of SIGTERM it takes 20 steps more and writes another one.
LOOP = """
import os, signal, sys, time
{imports}
model = torch.nn.Linear(4, 1)
{optimizer}
rank, step, saves = {rank}, 0, []
if "save" in sys.argv: signal.signal(signal.SIGTERM, lambda *_: saves.append(1))
while not saves:
    {step}; step += 1
    if step == 20: open(f"trains-{{rank}}", "w")
for _ in range(20):
    {step}; time.sleep(0.1)
open(f"saved-{{rank}}", "w")
os._exit(7)
"""
BACKWARD = "optimizer.zero_grad(); model(torch.ones(8, 4)).square().mean().backward(); "
LSAM = LOOP.format(
    imports="import torch; from lsam_hpc import LSAM",
    optimizer="optimizer = LSAM(torch.optim.SGD(model.parameters(), lr=0.1), rho=0.0)",
    rank="optimizer.comm.rank",
    step=BACKWARD + "optimizer.perturb(); " + BACKWARD + "optimizer.restore(); optimizer.update()",
)
HOROVOD = LOOP.format(
    imports="import torch; import horovod.torch as hvd; hvd.init()",
    optimizer="optimizer = hvd.DistributedOptimizer(torch.optim.SGD(model.parameters(), lr=0.1))",
    rank="hvd.rank()",
    step=BACKWARD + "optimizer.step()",
)


@pytest.mark.slow("kills launchers")
@pytest.mark.parametrize(
    ("name", "flags", "wrapped", "save"),
    [
        ("openmpi", (), False, True),
        ("openmpi", ("--enable-recovery",), False, False),
        ("openmpi", (), True, True),
        ("mpich", (), True, False),
    ],
)
def test_orphans_with_their_own_loop_end(
    name: str, flags: tuple[str, ...], *, wrapped: bool, save: bool, tmp_path: Path
) -> None:
    if name not in available():
        pytest.skip(f"no {name}")
    (tmp_path / "script.py").write_text(HOROVOD if wrapped else LSAM)
    program = [*(["-m", "lsam_hpc", "wrap", "--"] if wrapped else []), "script.py", *(["save"] if save else [])]
    with job(available()[name], tmp_path, *flags, program=program) as (launcher, *_):
        said = tmp_path / "said"
        trains = [tmp_path / f"trains-{rank}" for rank in range(RANKS)]
        wait_until(lambda: all(file.exists() for file in trains), "the steps", 60, details=said.read_text)
        os.kill(launcher, signal.SIGKILL)
        assert codes(tmp_path) == [7 if save else 3] * RANKS
    assert len(list(tmp_path.glob("saved-*"))) == RANKS * save
    assert "UCX" not in said.read_text()


@pytest.mark.slow("kills launchers")
@pytest.mark.parametrize("seed", range(TRIALS))
def test_orphans_of_the_start_end(seed: int, tmp_path: Path) -> None:
    if "openmpi" not in available():
        pytest.skip("no Open MPI")
    with job(available()["openmpi"], tmp_path, "--enable-recovery", "--epochs", "10000") as (launcher, *_):
        time.sleep(random.Random(seed).uniform(0, 4))  # any moment of the start is good
        os.kill(launcher, signal.SIGKILL)
        assert 0 not in codes(tmp_path)


@pytest.mark.slow("kills launchers")
def test_an_orphan_that_waits_for_a_dead_rank_ends(tmp_path: Path) -> None:
    if "openmpi" not in available():
        pytest.skip("no Open MPI")
    words = ("--enable-recovery", "--mode", "lockstep", "--epochs", "10000", "--flush-seconds", "0.1")
    with job(available()["openmpi"], tmp_path, *words) as (launcher, _, second):
        wait_until(lambda: trains(tmp_path), "the first steps", 60, pause=0.1, details=(tmp_path / "said").read_text)
        (child,) = Path(f"/proc/{second}/task/{second}/children").read_text().split()
        os.kill(int(child), signal.SIGKILL)
        os.kill(launcher, signal.SIGKILL)
        assert codes(tmp_path) == [3, 128 + signal.SIGKILL]


@pytest.mark.slow("kills ranks")
@pytest.mark.parametrize("seed", range(TRIALS))
def test_a_rank_is_killed_before_training_starts(seed: int, tmp_path: Path) -> None:
    if "openmpi" not in available():
        pytest.skip("no Open MPI")
    victim, delay = seed % RANKS, random.Random(seed).uniform(0, 1)
    mpi, words = available()["openmpi"], ("--enable-recovery", "--epochs", "10000", "--checkpoint-every", "none")
    if seed == 0:  # in LSAM's constructor
        code = (
            "import os, signal, sys, lsam_hpc.cli as cli; from lsam_hpc.rma import PeerTable\n"
            "make = PeerTable.__init__\n"
            "def dying(table, comm, *words):\n"
            "    if comm.rank == 0: os.kill(os.getpid(), signal.SIGKILL)\n"
            "    make(table, comm, *words)\n"
            "PeerTable.__init__ = dying; sys.exit(cli.main(sys.argv[1:]))"
        )
        mpi = replace(mpi, python=str(tmp_path / "python"))
        (tmp_path / "python").write_text(f'#!/bin/sh\nshift 2; exec {sys.executable} -c {shlex.quote(code)} "$@"\n')
        (tmp_path / "python").chmod(0o755)
    with job(mpi, tmp_path, *words) as (_, *pids):
        if seed:
            child = Path(f"/proc/{pids[victim]}/task/{pids[victim]}/children")
            wait_until(lambda: child.read_text() != "", "the rank")
            time.sleep(delay)  # any moment of the start is good
            os.kill(int(child.read_text()), signal.SIGKILL)
        assert codes(tmp_path, 20)[1 - victim] == 3
        said = tmp_path / "said"
        wait_until(lambda: "\n" in said.read_text().partition("lsam train")[2], "mpirun's output")
    # A rank that is killed within a fraction of a second was never seen.
    which = rf"(rank {victim}|1 of {RANKS} ranks on \S+)"
    # Stripped: a warning by Open MPI of another job's connection ends in the middle of a line.
    lines = [line.strip() for line in said.read_text().splitlines() if line.strip().startswith("lsam")]
    assert len(lines) == 1
    assert re.fullmatch(f"lsam train: stopped: {which} ended before training started", lines[0])
