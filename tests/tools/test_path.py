"""`lsam path`: barriers and curves, in files equal the library's results."""

import json
import re

import h5py
import numpy as np
import pytest
import torch

from lsam_hpc.cli import main
from lsam_hpc.landscape.geometry.path import line, lines
from lsam_hpc.landscape.objective import Objective
from tests.helpers import landscapes
from tests.helpers.landscapes import WORDS, classifier, images, walks, write_run
from tests.helpers.mpis import run

MODULE = "tests.helpers.landscapes"
pytestmark = pytest.mark.usefixtures("torch_threads")


@pytest.fixture
def path(tmp_path):
    return write_run(tmp_path / "run", 3)


def lsam_path(path, *words):
    return main(["path", str(path), *WORDS, *map(str, words)])


def exact():
    """Return the loss of `classifier` in float64."""
    return Objective(classifier().double(), [(x.double(), y) for x, y in images()])


def table(file):
    return np.genfromtxt(file, delimiter=",", names=True, dtype=None, encoding=None)


def test_the_matrix_of_all_ranks_and_the_center(path, capsys):
    assert lsam_path(path, "--points", 7) == 0
    states = [walks(3)[0, -1] / 2, *walks(3)[:, -1]]
    expected = lines(exact(), states, ["center", "0", "1", "2"], 7)
    with h5py.File(path / "figures" / "path-matrix.h5") as file:
        assert list(file["names"].asstr()) == ["center", "0", "1", "2"]
        np.testing.assert_allclose(file["loss"], expected.loss, rtol=1e-12)
        np.testing.assert_allclose(file["barrier"], expected.barriers, atol=1e-12)
    rows = table(path / "figures" / "path-matrix.csv")
    assert [(str(r["first"]), str(r["second"])) for r in rows] == [
        ("center", "0"),
        ("center", "1"),
        ("center", "2"),
        ("0", "1"),
        ("0", "2"),
        ("1", "2"),
    ]
    i, j = np.triu_indices(4, 1)
    np.testing.assert_allclose(rows["barrier"], expected.barriers[i, j], atol=1e-6)
    assert "no barrier between any two of the 4 states" in capsys.readouterr().out  # a linear model's loss is convex
    assert (path / "figures" / "path-matrix.png").stat().st_size > 5000


def test_rounding_is_no_barrier(tmp_path, capsys, monkeypatch):
    # States at a distance of 1e-3, where float32 rounds by more than the convex loss falls below its chord.
    near = walks(3)[0, 0] + 1e-4 * walks(3)
    monkeypatch.setattr(landscapes, "walks", lambda ranks, states, seed: near)
    path = write_run(tmp_path / "run", 3)
    for words, dtype in (((), "torch.float64"), (("--single",), "torch.float32"), (("--double",), "torch.float64")):
        assert lsam_path(path, "--overwrite", *words) == 0
        printed = capsys.readouterr().out
        assert "highest barrier" not in printed
        assert "no barrier between any two of the 4 states" in printed
        with h5py.File(path / "figures" / "path-matrix.h5") as file:
            assert not file["barrier"][()].any()
            assert json.loads(file.attrs["lsam_hpc"])["dtype"] == dtype


def test_a_line_whose_loss_is_not_finite_has_no_known_barrier(path, capsys):
    assert lsam_path(path, "--points", 5, "--loss", f"{MODULE}:far_is_nan") == 0
    printed = capsys.readouterr().out
    assert "nan" in printed
    assert "no barrier on the lines on which the loss is finite" in printed


def test_the_highest_barrier_is_of_a_pair(path, capsys):
    assert lsam_path(path, "--points", 7, "--loss", f"{MODULE}:wrong") == 0
    rows = table(path / "figures" / "path-matrix.csv")
    top = rows[rows["barrier"].argmax()]
    assert top["barrier"] > 0.01
    assert (
        f"highest barrier: {top['barrier']:.6g}, between {top['first']} and {top['second']}" in capsys.readouterr().out
    )


def test_a_model_of_float32_only(path, capsys):
    words = ("path", str(path), *(word.replace(":classifier", ":single_classifier") for word in WORDS))
    assert main([*words]) == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert re.search("model: expected one that computes in float64, found: .*dtype.*: --single", printed)
    assert main([*words, "--single"]) == 0


def test_two_states_and_a_curve(path, capsys):
    assert lsam_path(path, "--between", "0,1@3", "--points", 9, "--curve", "--curve-steps", 100) == 0
    expected = line(exact(), walks(3)[0, -1], walks(3)[1, 3], 9)
    columns = table(path / "figures" / "path-0-1@3.csv")
    np.testing.assert_allclose(columns["straight_loss"], expected.loss, rtol=1e-6)
    np.testing.assert_allclose(columns["straight_error"], expected.error)
    np.testing.assert_allclose(columns["bezier_loss"][[0, -1]], expected.loss[[0, -1]], rtol=1e-6)
    assert columns["bezier_loss"].mean() < columns["straight_loss"].mean()
    assert "straight line: barrier" in capsys.readouterr().out


def test_nan_losses_are_kept_and_reported(path, tmp_path, capsys):
    far = {"weight": torch.full((3, 4), 50.0), "bias": torch.zeros(3)}
    torch.save(far, tmp_path / "far.pt")
    words = ("--loss", f"{MODULE}:diverging", "--between", f"center,{tmp_path / 'far.pt'}", "--points", 5)
    assert lsam_path(path, *words) == 0
    losses = table(path / "figures" / "path-center-far.csv")["straight_loss"]
    assert np.isfinite(losses[0])
    assert np.isnan(losses[-1])
    printed = capsys.readouterr().out
    assert f"loss: not finite at {np.isnan(losses).sum()} of 5 points" in printed
    assert "barrier nan" in printed


@pytest.mark.slow("five jobs; tests/mpi/test_workqueue.py tests the same in one")
def test_the_same_bits_for_any_number_of_ranks(path, mpi):
    files = []
    for ranks in (1, 3):
        words = ["path", str(path), *WORDS, "--points", "5", "--name", f"p{ranks}"]
        more = [*words, "--between", "0,2", "--curve", "--name", f"c{ranks}"]
        for command in (words, more):
            done = run(mpi.command(ranks, mpi.forked, "-m", "mpi4py", "-m", "lsam_hpc", *command), timeout=200)
            assert done.returncode == 0, done.stderr
        files.append([(path / "figures" / f"{kind}{ranks}.csv").read_bytes() for kind in "pc"])
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--between", "0"), "--between: expected two states, .*, found 0"),
        (("--between", "0,0"), "0: expected another state than 0, found the same parameters"),
        (("--between", "0,mine"), "state: expected center.*, found 'mine'"),
        (("--curve",), "--curve: expected two states in --between, found none"),
        (("--points", "2"), "--points: expected 3 or more, found 2"),
        (("--make-batches", f"{MODULE}:nothing"), "data: expected at least one sample, found none"),
        (("--between", "0,1", "--curve", "--curve-steps", "0"), "curve: expected steps >= 1"),
    ],
)
def test_bad_input(path, capsys, words, line):
    assert lsam_path(path, *words) == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert re.search(line, printed)


def test_one_rank_and_no_snapshots(tmp_path, capsys):
    assert lsam_path(write_run(tmp_path / "one", 1)) == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.endswith(
        "expected two ranks or more for a matrix, found 1: name two states, as in --between 0,center or --between 0@0,0"
    )
    assert lsam_path(write_run(tmp_path / "bare", 2, snapshots=False)) == 2
    assert "expected snapshots of the sample of rank 0, found none" in capsys.readouterr().err
