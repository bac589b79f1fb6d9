"""`lsam diagnose` at the command line."""

import csv
import json
import sys

import h5py
import numpy as np
import pytest

from lsam_hpc.cli import main
from lsam_hpc.trajectory import TrajectoryWriter
from tests.helpers.logs import LAYOUT as LAYOUT_10
from tests.helpers.logs import SKETCH, attributes, exchange_row, make_run, step_row


@pytest.fixture
def path(tmp_path):
    """Return a run of two ranks whose chains are white noise, one of them apart."""
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"coupling": "kernel", "stiffness": 1.0, "temperature": 1.0}))
    random = np.random.default_rng(0)
    for rank in range(2):
        with TrajectoryWriter(path, rank, LAYOUT_10, attributes(2), sketch=SKETCH) as writer:
            for i in range(300):
                x = random.standard_normal(10).astype(np.float32) + 5 * rank
                writer.step(**{**step_row(i), "loss": float(x[0])})
                writer.exchange(**{**exchange_row(i), "center_distance": float(np.linalg.norm(x)), "blocked": 1e-9})
                writer.sketch("sample", SKETCH(x), i, i)
            writer.close({"steps": 300})
    return path


def test_diagnose(path, capsys):
    assert main(["diagnose", str(path)]) == 0
    out = capsys.readouterr().out
    assert "Are these chains samples? no." in out
    head = out.splitlines()[0]
    assert head.split("  ")[-3:] == ["bulk ESS", "tail ESS", "autocorrelation time"]
    assert " BAD  agreement: R-hat of the " in out
    assert "each chain stays in a place of its own: raise pull" in out.replace("\n      ", " ")
    assert "good  lost ranks: every rank ended" in out
    assert max(map(len, out.splitlines())) <= 120
    figures = path / "figures"
    assert (figures / "diagnose.png").read_bytes()[:4] == b"\x89PNG"
    with (figures / "diagnose.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows["agreement"]["good"] == "False"
    assert float(rows["agreement"]["threshold"]) == 1.01
    with h5py.File(figures / "diagnose.h5") as file:
        assert file["draws/component 1"].shape == (2, 150)
        notes = json.loads(file.attrs["lsam_hpc"])
    assert notes.pop("figure")["title"] == "run, 2 chains, from 50 % of the run on"
    assert main(["diagnose", str(path), "--json", "--overwrite", "--format", "svg"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == notes
    assert summary["samples"] is False
    assert summary["quantities"]["component 1"]["rhat"] > 1.5
    assert float(rows["agreement"]["value"]) == max(q["rhat"] for q in summary["quantities"].values())
    assert summary["spread"]["kernel"] == pytest.approx(10**0.5)
    figure = (figures / "diagnose.svg").read_text()
    bulk, tail = (summary["quantities"]["component 1"][f"ess_{kind}"] for kind in ("bulk", "tail"))
    assert f"bulk ESS {bulk:.0f}, tail ESS {tail:.0f}" in figure


def test_one_rank(tmp_path, capsys):
    path = make_run(tmp_path / "run", 1, 400, states=True)
    assert main(["diagnose", str(path), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["verdicts"][0]["text"].startswith("one chain: this compares its halves and cannot see other basins")


def test_bad_input(tmp_path, capsys, monkeypatch):
    short = make_run(tmp_path / "short", 2, 30)
    for words, message in (
        ([str(tmp_path / "none")], "expected a run directory, found nothing"),
        (
            [str(short)],
            "expected 20 rows of the loss or more in each chain from 0.5 of the run on, found 15: train longer",
        ),
        ([str(short), "--from", "2"], "--from: expected a share of the rows in [0, 1), found 2.0"),
        ([str(short), "--name", "a/b"], "--name: expected a name without folders, found 'a/b'"),
    ):
        assert main(["diagnose", *words]) == 2
        err = capsys.readouterr().err
        assert err.startswith("lsam diagnose: ")
        assert message in err
        assert err.count("\n") == 1
    monkeypatch.setitem(sys.modules, "arviz", None)
    assert main(["diagnose", str(short), "--from", "0"]) == 2
    assert "expected the package arviz, found none: pip install 'lsam-hpc[analysis]'" in capsys.readouterr().err
