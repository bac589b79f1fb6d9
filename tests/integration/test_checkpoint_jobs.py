"""Stopped and killed jobs resume from their checkpoints, with any number of ranks."""

import os
import random
import re

import numpy as np
import pytest
import torch

from lsam_hpc.train.manifest import newest
from lsam_hpc.trajectory import Run, verify
from tests.helpers.mpis import ROOT, run

KILLS = int(os.environ.get("LSAM_JOB_KILLS", "2"))
# The given rank (-1: each rank) sends itself a signal after the given local step.
SIGNALLED = """
import os, signal, sys, time
import lsam_hpc.cli as cli
from lsam_hpc.train.checkpoint_scheduler import CheckpointScheduler
rank, when, number = int(sys.argv[1]), int(sys.argv[2]), getattr(signal, sys.argv[3])
step = CheckpointScheduler.step
def stepped(self, *before):
    step(self, *before)
    if at := os.environ.get("LSAM_TEST_AT"):
        with open(f"{at}-{self._opt.comm.rank}", "w") as file:
            file.write(str(self._opt.local_step))
        time.sleep(0.02)  # slow steps: writing a checkpoint takes far less than a period
    if rank in (-1, self._opt.comm.rank) and self._opt.local_step == when:
        os.kill(os.getpid(), number)
CheckpointScheduler.step = stepped
sys.exit(cli.main(sys.argv[4:]))
"""


def train(mpi, ranks, out, *words, signalled=None, timeout=240, **env):
    start = ("-m", "lsam_hpc") if signalled is None else ("-c", SIGNALLED, *map(str, signalled))
    return run(mpi.command(ranks, mpi.forked, *start, "train", "--out", str(out), *words), timeout, **env)


def sound(out):
    logs = Run(out)
    assert verify(logs) == []
    return logs


def resumed_at(done):
    return int(re.search(r"resuming from step (\d+)", done.stderr)[1])


def test_a_signal_to_one_rank_stops_all_and_no_step_is_lost_or_repeated(mpi, tmp_path):
    out, words = tmp_path / "run", ("--steps", "600", "--snapshot-every", "log", "--resume", "auto")
    done = train(mpi, 3, out, *words, signalled=(1, 60, "SIGUSR1"), LSAM_TEST_AT=str(tmp_path / "at"))
    assert done.returncode == 3, done.stderr
    assert "lsam-hpc: stopped (" in done.stderr
    taken = sum(len(Run(out).steps(r)["iteration"]) for r in range(3))
    assert 60 <= taken < 600
    done = train(mpi, 3, out, *words)
    assert done.returncode == 0, done.stderr
    assert f"resuming from step {resumed_at(done)} of 3 ranks" in done.stderr
    logs = sound(out)
    global_steps = np.concatenate([logs.steps(r)["total_iteration"] for r in logs.ranks])
    assert sorted(global_steps) == list(range(600))
    assert logs.result(0)["center_test_error"] < 20
    for r in logs.ranks:
        np.testing.assert_array_equal(logs.steps(r)["iteration"], np.arange(len(logs.steps(r)["iteration"])))
        assert (np.diff(logs.steps(r)["time"]) >= 0).all()


TWICE = """
import os, signal, sys
import lsam_hpc.cli as cli
from lsam_hpc.train.checkpoint_scheduler import CheckpointScheduler
step, last = CheckpointScheduler.step, CheckpointScheduler.last_state
def stepped(self, *before):
    step(self, *before)
    if self._opt.local_step == 9:
        os.kill(os.getpid(), signal.SIGUSR1)
def last_state(self):
    os.kill(os.getpid(), signal.SIGTERM)
    return last(self)
CheckpointScheduler.step, CheckpointScheduler.last_state = stepped, last_state
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_second_signal_while_the_last_checkpoint_is_written(mpi, tmp_path):
    words = ("train", "--out", str(tmp_path / "run"), "--steps", "900")
    done = run(mpi.command(2, mpi.forked, "-c", TWICE, *words), 120)
    assert done.returncode == 3, done.stderr
    assert newest(tmp_path / "run" / "checkpoints").step < 900


def test_in_lockstep_a_resumed_job_gives_the_same_bits_as_an_undisturbed_one(mpi, tmp_path):
    words = (
        "--steps",
        "200",
        "--mode",
        "lockstep",
        "--period",
        "5",
        "--snapshot-every",
        "log",
        "--ascent",
        "sampa",
        "--mask",
        "random",
        "--checkpoint-every",
        "40",
    )
    assert train(mpi, 2, tmp_path / "whole", *words).returncode == 0
    words += ("--resume", "auto")
    assert train(mpi, 2, tmp_path / "run", *words, signalled=(0, 33, "SIGTERM")).returncode == 3
    assert train(mpi, 2, tmp_path / "run", *words, signalled=(-1, 70, "SIGKILL")).returncode != 0
    done = train(mpi, 2, tmp_path / "run", *words)
    assert done.returncode == 0, done.stderr
    one, other = Run(tmp_path / "whole"), sound(tmp_path / "run")
    for rank in range(2):
        for index in (0, -1):  # the initial state survives the attempts
            np.testing.assert_array_equal(one.snapshot(rank, index), other.snapshot(rank, index))
        for logs in (one, other):
            assert [logs.snapshots(rank, "center")[name][0] for name in ("iteration", "version")] == [0, 0]
        np.testing.assert_array_equal(one.steps(rank)["loss"], other.steps(rank)["loss"])
    whole, again = (torch.load(tmp_path / d / "checkpoints" / "center.pt", weights_only=True) for d in ("whole", "run"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_synchronous_job_resumes(mpi, tmp_path):
    words = ("--synchronous", "--reduce", "mpi", "--steps", "60", "--resume", "auto")
    assert train(mpi, 2, tmp_path / "whole", *words).returncode == 0
    assert train(mpi, 2, tmp_path / "run", *words, signalled=(0, 17, "SIGTERM")).returncode == 3
    done = train(mpi, 2, tmp_path / "run", *words)
    assert done.returncode == 0, done.stderr
    assert 17 <= resumed_at(done) < 60
    whole, again = (torch.load(tmp_path / d / "checkpoints" / "center.pt", weights_only=True) for d in ("whole", "run"))
    for name in whole:  # the exchange in flight at the stop is applied earlier, and rounds otherwise
        torch.testing.assert_close(whole[name], again[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow("three jobs; tests/mpi resumes the optimizer")
def test_a_job_that_is_stopped_in_its_synchronous_start_resumes_to_the_bit(mpi, tmp_path):
    words = ("--synchronous-start", "0.5", "--reduce", "mpi", "--mode", "lockstep", "--steps", "121")
    words += ("--snapshot-every", "log", "--resume", "auto")
    assert train(mpi, 2, tmp_path / "whole", *words).returncode == 0
    assert train(mpi, 2, tmp_path / "run", *words, signalled=(1, 17, "SIGTERM")).returncode == 3
    taken = [len(Run(tmp_path / "run").steps(rank)["loss"]) for rank in range(2)]
    assert taken in ([17, 17], [18, 18])  # rank 0 may have claimed the next step already
    done = train(mpi, 2, tmp_path / "run", *words)
    assert done.returncode == 0, done.stderr
    assert resumed_at(done) == 2 * taken[0]
    one, other = Run(tmp_path / "whole"), sound(tmp_path / "run")
    last = [one.snapshot(rank, -1) for rank in range(2)]
    for rank in range(2):
        np.testing.assert_array_equal(last[rank], other.snapshot(rank, -1))
        np.testing.assert_array_equal(one.steps(rank)["loss"], other.steps(rank)["loss"])
        assert list(one.steps(rank)["total_iteration"][:33]) == [*range(0, 62, 2), 62 + rank, 64 + rank]
    assert not np.array_equal(*last)
    whole, again = (torch.load(tmp_path / d / "checkpoints" / "center.pt", weights_only=True) for d in ("whole", "run"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


NORMALIZED = """
from torch import nn
def network(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, classes))
"""


@pytest.mark.parametrize("method", ["--selection ausam", "--adversarial conadv --model normalized:network"])
def test_averages_of_samples_and_the_mini_batch_made_ahead_are_resumed(mpi, method, tmp_path):
    (tmp_path / "normalized.py").write_text(NORMALIZED)
    words = ("--steps", "80", "--mode", "lockstep", "--snapshot-every", "log", "--resume", "auto", *method.split())
    env = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    assert train(mpi, 2, tmp_path / "whole", *words, **env).returncode == 0
    assert train(mpi, 2, tmp_path / "run", *words, signalled=(0, 17, "SIGTERM"), **env).returncode == 3
    done = train(mpi, 2, tmp_path / "run", *words, **env)
    assert done.returncode == 0, done.stderr
    assert 17 <= resumed_at(done) < 80
    one, other = Run(tmp_path / "whole"), sound(tmp_path / "run")
    for rank in range(2):
        np.testing.assert_array_equal(one.snapshot(rank, -1), other.snapshot(rank, -1))
        np.testing.assert_array_equal(one.steps(rank)["loss"], other.steps(rank)["loss"])
    whole, again = (torch.load(tmp_path / d / "checkpoints" / "center.pt", weights_only=True) for d in ("whole", "run"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    if "conadv" in method:
        assert whole["2.adversarial.num_batches_tracked"] > 0  # the center's evaluation kept the second statistics


@pytest.mark.slow("kills whole jobs at random moments")
@pytest.mark.parametrize("seed", range(KILLS))
def test_a_killed_job_resumes_and_loses_at_most_a_period(mpi, seed, tmp_path):
    chance, out, period = random.Random(seed), tmp_path / "run", 100
    words = ("--steps", "1200", "--checkpoint-every", str(period), "--resume", "auto", "--budget", "per-rank")
    when = chance.randrange(100, 200)
    done = train(mpi, 2, out, *words, signalled=(-1, when, "SIGKILL"), LSAM_TEST_AT=str(tmp_path / "at"))
    assert done.returncode not in (0, 3)
    done = train(mpi, 2, out, *words)
    assert done.returncode == 0, done.stderr
    # MPI may end the slower rank earlier. The newest complete set may be one period older than the last set.
    slower = min(int((tmp_path / f"at-{rank}").read_text() or when) for rank in range(2))
    assert 2 * slower - 2 * period <= resumed_at(done) <= 2 * slower
    logs = sound(out)
    assert [len(logs.steps(r)["iteration"]) for r in range(2)] == [600, 600]
    assert logs.result(0)["center_test_error"] < 10


@pytest.mark.slow("six ranks on two cores")
def test_from_four_ranks_to_two_to_six(mpi, tmp_path):
    out, words = tmp_path / "run", ("--checkpoint-every", "100", "--resume", "auto", "--snapshot-every", "log")
    assert train(mpi, 4, out, "--steps", "400", *words).returncode == 0
    centers = [Run(out).snapshot(0, -1, "center")]
    for ranks, steps in ((2, 800), (6, 1600)):
        done = train(mpi, ranks, out, "--steps", str(steps), *words)
        assert done.returncode == 0, done.stderr
        logs = sound(out)
        assert logs.ranks == list(range(ranks))
        if ranks == 6:  # a new chain starts at the center
            first = logs.snapshot(4, 0)
            near, far = (np.linalg.norm(first - c) for c in (centers[-1], centers[0]))
            assert near < 0.2 * np.linalg.norm(centers[-1])
            assert near < far + 1e-3
        centers.append(logs.snapshot(0, -1, "center"))
    assert logs.result(0)["center_test_error"] < 5
    assert sorted(f.name for f in out.glob("*.old")) == ["rank-0002.h5.old", "rank-0003.h5.old"]


def test_refuses_in_one_line_and_overwrites_nothing(mpi, tmp_path):
    out = tmp_path / "run"
    assert train(mpi, 2, out, "--steps", "100", "--checkpoint-every", "50").returncode == 0
    file = max((out / "checkpoints").glob("rank-0001-*.pt"))
    data = file.read_bytes()

    def refused(expected, *words):
        before = {f: f.read_bytes() for f in out.rglob("*") if f.is_file()}
        done = train(mpi, 2, out, "--steps", "200", *(words or ("--resume", "auto")))
        assert done.returncode == 2, done.stderr
        lines = [line for line in done.stderr.splitlines() if line.startswith("lsam ")]
        assert len(lines) == 1
        assert re.search(expected, lines[0]), lines[0]
        assert {f: f.read_bytes() for f in out.rglob("*") if f.is_file()} == before

    refused("--out: expected a directory without a run, found one", "--period", "4")
    refused("--model: .*|difference in", "--resume", "auto", "--model", "cnn")
    refused(
        "--coupling: expected elastic, as in the checkpoint, found kernel", "--resume", "must", "--coupling", "kernel"
    )
    file.write_bytes(data[:-10])
    refused(f"expected {len(data)} bytes, found {len(data) - 10}")
    middle = len(data) // 2
    file.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    refused("rank 1: .*expected the checksums that were written, found another")
    done = train(mpi, 1, tmp_path / "none", "--resume", "must")
    assert done.returncode == 2
    assert "--resume: expected a checkpoint in" in done.stderr
    assert not (tmp_path / "none").exists()
