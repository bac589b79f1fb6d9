"""`lsam train --curvature-every`: training is the same to the bit, in lockstep, in groups, stopped and resumed."""

import numpy as np
import pytest
import torch

from lsam_hpc.cli import main
from lsam_hpc.trajectory import Run, verify
from tests.helpers.mpis import ROOT
from tests.integration.test_checkpoint_jobs import resumed_at, train

MODEL = """
from torch import nn
def network(shape, classes):
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, classes)
    )
"""
BROKEN = """
from torch import nn
from tests.optim.test_curvature import OnceModel
def network(shape, classes):
    return nn.Sequential(nn.Flatten(), OnceModel(64, classes))
"""
WORDS = ("--steps", "80", "--mode", "lockstep", "--snapshot-every", "log", "--model", "measured:network")
EVERY = ("--curvature-every", "7", "--curvature-images", "100")
COLUMNS = ("iteration", "total_iteration", "eigenvalue", "residual", "products")


@pytest.mark.slow("five jobs; tests/optim/test_curvature.py tests the measurement in one process")
def test_the_trajectory_is_the_same_to_the_bit_also_when_resumed(openmpi, tmp_path):
    (tmp_path / "measured.py").write_text(MODEL)
    env = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    for name, more in (("plain", ()), ("whole", EVERY)):
        done = train(openmpi, 2, tmp_path / name, *WORDS, *more, **env)
        assert done.returncode == 0, done.stderr
    words = (*WORDS, *EVERY, "--resume", "auto")
    assert train(openmpi, 2, tmp_path / "run", *words, signalled=(0, 21, "SIGTERM"), **env).returncode == 3
    done = train(openmpi, 2, tmp_path / "run", *words, **env)
    assert done.returncode == 0, done.stderr
    assert 21 <= resumed_at(done) < 80
    plain, whole, resumed = (Run(tmp_path / name) for name in ("plain", "whole", "run"))
    assert "curvature" not in plain.log(0).tables
    for rank in range(2):
        for other in (whole, resumed):
            assert verify(other) == []
            np.testing.assert_array_equal(plain.snapshot(rank, -1), other.snapshot(rank, -1))
            np.testing.assert_array_equal(plain.steps(rank)["loss"], other.steps(rank)["loss"])
        one, again = (logs.log(rank).table("curvature") for logs in (whole, resumed))
        assert one["iteration"].tolist() == list(range(0, 41, 7))
        for column in COLUMNS:
            np.testing.assert_array_equal(one[column], again[column])
    centers = [torch.load(tmp_path / d / "checkpoints" / "center.pt", weights_only=True) for d in ("plain", "whole")]
    assert all(torch.equal(value, centers[1][name]) for name, value in centers[0].items())
    # `lsam spectrum --along` computes the same from the snapshots, and draws both.
    options = ["--images", "100", "--model", "measured:network"]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        assert main(["spectrum", str(whole.path), "--along", "sample", *options, "--matrix", "hessian"]) == 0
    assert main(["spectrum", str(whole.path), "--along", "measured", "--name", "m"]) == 0
    computed, measured = (
        np.genfromtxt(whole.path / "figures" / f"{name}-edge.csv", delimiter=",", names=True)
        for name in ("spectrum-center", "m")
    )
    start = [table["sharpness"][table["iteration"] == 0] for table in (computed, measured)]
    np.testing.assert_allclose(start[1], start[0], rtol=1e-3)
    np.testing.assert_array_equal(
        measured["sharpness"], np.concatenate([whole.log(r).table("curvature")["eigenvalue"] for r in (0, 1)])
    )
    assert main(["spectrum", str(plain.path), "--along", "measured"]) == 2


@pytest.mark.slow("a job")
def test_the_leader_of_a_group_measures(openmpi, tmp_path):
    words = ("--steps", "30", "--group-size", "2", "--reduce", "mpi", "--curvature-every", "10")
    done = train(openmpi, 2, tmp_path / "run", *words)
    assert done.returncode == 0, done.stderr
    run = Run(tmp_path / "run")
    assert verify(run) == []
    assert [run.log(rank).table("curvature")["iteration"].tolist() for rank in range(2)] == [[0, 10, 20, 30], []]


@pytest.mark.slow("a job")
def test_a_layer_that_has_no_second_derivative_ends_the_job_in_one_line(openmpi, tmp_path):
    (tmp_path / "measured.py").write_text(BROKEN)
    env = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    words = ("--steps", "30", "--model", "measured:network", "--curvature-every", "10")
    done = train(openmpi, 2, tmp_path / "run", *words, **env)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if "lsam train:" in line]
    assert len(lines) == 1, done.stderr
    assert "model: expected layers that can be differentiated twice" in lines[0]
