"""`lsam predict` on states whose predictions are known: members, averages, files, and one line per input error."""

import json
import sys

import h5py
import numpy as np
import pytest
from scipy.special import logsumexp, softmax

from lsam_hpc.cli import main
from lsam_hpc.landscape.prediction.ensembles import members
from lsam_hpc.trajectory import Run, Snapshots, TrajectoryWriter
from tests.helpers.logs import attributes, step_row
from tests.helpers.small_model import read

# The classifier ignores its inputs, so that a state's probabilities are the softmax of its two parameters. Of 20
# targets 11 are class 0.
MODULE = """
import numpy as np
import torch
from torch import nn

class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return self.logits.expand(len(x), -1)

class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return self.logits

class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(2, affine=False)
        self.scale = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return self.scale * self.norm(x.flatten(1))

def loader():
    y = torch.arange(20).ge(11).long()
    return [(torch.zeros(12, 1), y[:12]), (torch.zeros(8, 1), y[12:])]

def data(directory):
    rng = np.random.default_rng(0)
    train, test = (rng.normal(m, 1, (n, 2, 1, 1)).astype(np.float32) for m, n in ((0, 50), (3, 30)))
    return train, np.arange(50) % 2, test, np.arange(30) % 2

def normed(shape, classes):
    return Normed()
"""
P = {"a": (0.9, 0.1), "b": (0.2, 0.8), "c": (0.6, 0.4), "d": (0.3, 0.7), "center": (0.7, 0.3)}
STATES = {0: "dcab", 1: "dcba"}  # of the ranks, at steps 0, 4, 8 and 11 of 12
AT = (0, 4, 8, 11)


def write(path, name, states, center, ranks=2, config=None):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config or {}))
    for rank in range(ranks):
        with TrajectoryWriter(path, rank, [(name, (2,))], attributes(ranks), snapshots=Snapshots()) as writer:
            for i in range(12):
                writer.step(**step_row(i))
                if i in AT:
                    writer.snapshot("sample", states[rank][AT.index(i)], i)
                    writer.snapshot("center", center, i)
    return path


@pytest.fixture
def setting(tmp_path, monkeypatch):
    (tmp_path / "predict_model.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "predict_model", raising=False)
    logits = {name: np.log(p).astype(np.float32) for name, p in P.items()}
    states = {rank: [logits[name] for name in names] for rank, names in STATES.items()}
    path = write(tmp_path / "run", "logits", states, logits["center"])
    words = ["--make-model", "predict_model:Constant", "--make-batches", "predict_model:loader"]
    return path, words, lambda config: write(tmp_path / "more", "logits", states, logits["center"], config=config)


def expected(p0):
    """Return error, NLL, Brier score and ECE of a constant predictor; 11 of 20 targets are class 0."""
    accuracy, confidence = (0.55, p0) if p0 > 0.5 else (0.45, 1 - p0)
    nll = -(0.55 * np.log(p0) + 0.45 * np.log(1 - p0))
    brier = 2 * (0.55 * (1 - p0) ** 2 + 0.45 * p0**2)
    return 100 * (1 - accuracy), nll, brier, abs(accuracy - confidence)


def numbers(row):
    return [float(row[name]) for name in ("error", "nll", "brier", "ece")]


def test_constant_predictors(setting, capsys):
    path, words, _ = setting
    assert main(["predict", str(path), *words]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "predictions of 20 samples"
    center, one, last, snapshots = read(path / "figures" / "predict.csv")
    assert [row["predictor"] for row in (center, one, last, snapshots)] == [
        "center",
        "one chain, mean of 2",
        "chains' last samples",
        "snapshots",
    ]
    assert [int(row["members"]) for row in (center, one, last, snapshots)] == [1, 1, 2, 4]
    # Chain 0 ends at b, chain 1 at a; from step 6 of 12 on each has a and b.
    np.testing.assert_allclose(numbers(center), expected(0.7), rtol=1e-6)
    np.testing.assert_allclose(numbers(one), np.mean([expected(0.2), expected(0.9)], 0), rtol=1e-6)
    np.testing.assert_allclose(numbers(last), expected(0.55), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(numbers(snapshots), expected(0.55), rtol=1e-6, atol=1e-7)
    # The difference of two constant predictors' losses has two values, on 11 and on 9 samples.
    differences = np.repeat(np.log([0.7 / 0.55, 0.3 / 0.45]), [11, 9])
    assert float(last["nll_minus_center"]) == pytest.approx(differences.mean(), rel=1e-5)
    assert float(last["standard_error"]) == pytest.approx(differences.std(ddof=1) / np.sqrt(20), rel=1e-5)
    with h5py.File(path / "figures" / "predict.h5") as file:
        assert file["counts"].shape == (4, 15)
        assert file["counts"][:].sum(1).tolist() == [20, 40, 20, 20]
        assert file["accuracy"][0, 10] == pytest.approx(0.55)  # confidence 0.7 is in (10/15, 11/15]
        notes = json.loads(file.attrs["lsam_hpc"])
    assert notes["ensembles"]["snapshots"] == ["0@2", "0@3", "1@2", "1@3"]
    assert (path / "figures" / "predict.png").stat().st_size > 1000


def test_from_and_thin_choose_the_members(setting, capsys):
    path, words, _ = setting
    run = Run(path)
    assert members(run, 0, 0.0, 1) == [0, 1, 2, 3]
    assert members(run, 0, 0.5, 1) == [2, 3]
    assert members(run, 0, 0.7, 1) == [2, 3]  # from step 8 on
    assert members(run, 0, 0.75, 1) == [3]
    assert members(run, 0, 0.0, 2) == [1, 3]
    assert members(run, 0, 0.0, 3) == [0, 3]
    assert main(["predict", str(path), *words, "--from", "0", "--thin", "2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ensembles"]["snapshots"] == ["0@1", "0@3", "1@1", "1@3"]
    row = result["predictors"][-1]
    np.testing.assert_allclose(numbers(row), expected((0.6 + 0.2 + 0.6 + 0.9) / 4), rtol=1e-6)


@pytest.mark.parametrize("config", [{"group_size": 2}, {"synchronous": True, "group_size": 1}])
def test_the_ranks_of_a_group_are_one_chain(setting, capsys, config):
    _, words, write_run = setting
    path = write_run(config)
    assert main(["predict", str(path), *words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ensembles"]["chains' last samples"] == ["0@3"]
    assert [row["members"] for row in result["predictors"]] == [1, 1, 1, 2]


def test_batchnorm_has_the_statistics_of_the_training_images(tmp_path, monkeypatch, capsys):
    (tmp_path / "predict_model.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "predict_model", raising=False)
    scale = np.array([1.0, -0.5], np.float32)
    path = write(tmp_path / "run", "scale", {0: [scale] * 4}, scale, ranks=1)
    words = ["--data", "predict_model:data", "--model", "predict_model:normed"]
    assert main(["predict", str(path), *words, "--json"]) == 0
    center = json.loads(capsys.readouterr().out)["predictors"][0]
    import predict_model

    train, _, test, y = predict_model.data(None)
    train, test = (x.astype(np.float64).reshape(-1, 2) for x in (train, test))
    outputs = scale * (test - train.mean(0)) / np.sqrt(train.var(0, ddof=1) + 1e-5)
    assert center["nll"] == pytest.approx((logsumexp(outputs, 1) - outputs[np.arange(30), y]).mean(), rel=1e-5)
    brier = ((softmax(outputs, 1) - np.eye(2)[y]) ** 2).sum(1).mean()
    assert center["brier"] == pytest.approx(brier, rel=1e-5)


def test_without_snapshots_of_samples_only_the_center_is_left(setting, tmp_path, capsys):
    _, words, _ = setting
    path = tmp_path / "center-only"
    path.mkdir()
    (path / "config.json").write_text("{}")
    with TrajectoryWriter(path, 0, [("logits", (2,))], attributes(1), snapshots=Snapshots(states=("center",))) as w:
        w.step(**step_row(0))
        w.snapshot("center", np.log(P["center"]).astype(np.float32), 0)
    assert main(["predict", str(path), *words]) == 0
    assert "no snapshots of the samples" in capsys.readouterr().out
    (row,) = read(path / "figures" / "predict.csv")
    np.testing.assert_allclose(numbers(row), expected(0.7), rtol=1e-6)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--from", "1"], "--from: expected a share of the steps in [0, 1), found 1.0"),
        (["--from", "0.95"], "--from: expected a share of the steps before the last snapshot, found 0.95"),
        (["--thin", "0"], "--thin: expected 1 or more, found 0"),
        (["--threads", "0"], "--threads: expected 1 or more, found 0"),
        (["--make-model", "predict_model:Flat"], "model: expected outputs of shape (12, classes), found (2,)"),
    ],
)
def test_input_errors(setting, tmp_path, capsys, more, message):
    path, words, _ = setting
    if more == ["--from", "0.95"]:  # a killed run, whose last steps have no snapshot
        path = tmp_path / "killed"
        path.mkdir()
        (path / "config.json").write_text("{}")
        with TrajectoryWriter(path, 0, [("logits", (2,))], attributes(1), snapshots=Snapshots()) as writer:
            for i in range(12):
                writer.step(**step_row(i))
            for state in ("sample", "center"):
                writer.snapshot(state, np.zeros(2, np.float32), 4)
    assert main(["predict", str(path), *words, *more]) == 2
    assert capsys.readouterr().err == f"lsam predict: {message}\n"
    assert not (path / "figures" / "predict.csv").exists()


@pytest.mark.mpi(np=[2])
def test_the_same_numbers_on_two_ranks(comm, tmp_path):
    if comm.rank == 0:
        (tmp_path / "predict_model.py").write_text(MODULE)
        logits = {name: np.log(p).astype(np.float32) for name, p in P.items()}
        states = {rank: [logits[name] for name in names] for rank, names in STATES.items()}
        write(tmp_path / "run", "logits", states, logits["center"])
    comm.barrier()
    sys.path.insert(0, str(tmp_path))
    words = ["--make-model", "predict_model:Constant", "--make-batches", "predict_model:loader"]
    assert main(["predict", str(tmp_path / "run"), *words]) == 0
    if comm.rank == 0:
        rows = read(tmp_path / "run" / "figures" / "predict.csv")
        np.testing.assert_allclose(numbers(rows[2]), expected(0.55), rtol=1e-6, atol=1e-7)
