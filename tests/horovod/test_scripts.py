"""Unchanged scripts modelled on Horovod's examples: with plain Horovod, and under `lsam wrap`."""

import re

import numpy as np
import pytest
import torch

from lsam_hpc.trajectory import Run
from tests.helpers.mpis import ROOT, run

SLOW = pytest.mark.slow("a job of its own; the others run the same script")
RANKS = [2, pytest.param(4, marks=SLOW)]
SCRIPTS = ROOT / "tests" / "horovod" / "scripts"


def wrapped(mpi, ranks, out, script, *words, options=(), python=None):
    words = ("-m", "lsam_hpc", "wrap", "--out", str(out), *options, "--", str(SCRIPTS / script), *words)
    return run(mpi.command(ranks, python or mpi.forked, *words), 120)


def plain(mpi, ranks, script, *words):
    return run(mpi.command(ranks, mpi.forked, "-m", "mpi4py", str(SCRIPTS / script), *words), 120)


def once(mpi, ranks):
    """Whether to run the script with plain Horovod too: once is enough, whatever the MPI and the ranks."""
    return mpi.name == "openmpi" and ranks == 2


def accuracy(done):
    assert done.returncode == 0, done.stderr
    return float(re.findall(r"[Aa]ccuracy:? ([\d.]+)%", done.stdout)[-1])


@pytest.mark.parametrize("ranks", RANKS)
def test_mnist(mpi, ranks, tmp_path):
    # Chance gives 10 %.
    if once(mpi, ranks):
        assert accuracy(plain(mpi, ranks, "mnist.py", "--epochs", "4")) > 80
    # As users start it: mpi.forked would have modules imported already.
    assert accuracy(wrapped(mpi, ranks, tmp_path / "run", "mnist.py", "--epochs", "4", python=mpi.python)) > 80
    with Run(tmp_path / "run") as logs:
        assert logs.ranks == list(range(ranks))
        for rank in logs.ranks:
            steps, exchanges = logs.steps(rank), logs.exchanges(rank)
            assert len(steps["loss"]) == 4 * 1280 // 32 // ranks
            assert np.isfinite(steps["loss"]).all()
            np.testing.assert_allclose(steps["perturbation_norm"][1:], 0.05, rtol=1e-4)
            assert len(exchanges["delta_norm"]) == len(steps["loss"]) // 4
            np.testing.assert_array_equal(
                logs.sketch(rank)["iteration"], [0, *exchanges["iteration"], len(steps["loss"])]
            )
        assert logs.logs[0].result["exchanges"] == len(exchanges["delta_norm"])


@pytest.mark.parametrize("context", ["fork", pytest.param("forkserver", marks=SLOW), pytest.param("spawn", marks=SLOW)])
def test_data_loader_workers(mpi, context, tmp_path):
    done = wrapped(mpi, 2, tmp_path / "run", "mnist.py", "--epochs", "1", "--workers", "1", "--context", context)
    assert accuracy(done) > 20
    assert done.stdout.count("Test set") == 1


def test_groups_average_by_horovod(mpi, tmp_path):
    words = ("mnist.py", "--epochs", "4", "--fp16-allreduce", "--gradient-predivide-factor", "2")
    assert accuracy(wrapped(mpi, 4, tmp_path / "run", *words, options=("--group-size", "2"))) > 80


def test_adasum_is_refused(mpi, tmp_path):
    done = wrapped(mpi, 2, tmp_path / "run", "mnist.py", "--use-adasum")
    assert done.returncode == 2
    assert re.search(r"lsam wrap: op: expected Average or Sum, found Adasum.*mnist\.py, line \d+\)", done.stderr)
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("ranks", RANKS)
def test_imagenet_with_checkpoint_and_resume(mpi, ranks, tmp_path):
    checkpoints = ("imagenet.py", "--checkpoint-format", str(tmp_path / "checkpoint-{epoch}.pth"), "--epochs")
    first = wrapped(mpi, ranks, tmp_path / "a", *checkpoints, "4")
    assert accuracy(first) > 80
    resumed = wrapped(mpi, ranks, tmp_path / "b", *checkpoints, "5")
    assert resumed.returncode == 0, resumed.stderr
    assert "resumed from epoch 4" in resumed.stdout
    ends = re.findall(r"Epoch 3: validation loss ([\d.]+)", first.stdout + resumed.stdout)
    # The checkpoint holds the evaluated center; other ranks may have moved it between the two.
    assert float(ends[1]) == pytest.approx(float(ends[0]), rel=0.2, abs=0.02)
    assert set(torch.load(tmp_path / "checkpoint-4.pth")["optimizer"]) == {"state", "param_groups"}
    # Back to plain Horovod, from LSAM's checkpoint.
    if once(mpi, ranks):
        back = plain(mpi, ranks, *checkpoints, "6")
        assert "resumed from epoch 5" in back.stdout
        assert accuracy(back) > 80


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("words", [pytest.param((), marks=SLOW), ("--amp", "--fp16-allreduce")])
def test_synthetic_benchmark(mpi, ranks, words, tmp_path):
    if once(mpi, ranks):
        assert "loss went down: True" in plain(mpi, ranks, "synthetic.py", *words).stdout
    done = wrapped(mpi, ranks, tmp_path / "run", "synthetic.py", *words)
    assert done.returncode == 0, done.stderr
    assert "loss went down: True" in done.stdout
    with Run(tmp_path / "run") as logs:
        # The log has the unscaled loss.
        assert logs.steps(0)["loss"].max() < 10


@pytest.mark.parametrize("ranks", RANKS)
def test_elastic_state(mpi, ranks, tmp_path):
    if once(mpi, ranks):
        assert "steps 60" in plain(mpi, ranks, "elastic.py").stdout
    done = wrapped(mpi, ranks, tmp_path / "run", "elastic.py")
    assert done.returncode == 0, done.stderr
    assert float(re.search(r"steps 60, loss ([\d.]+)", done.stdout)[1]) < 1.5  # log 5 = 1.61 at the start
