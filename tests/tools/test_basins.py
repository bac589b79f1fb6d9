"""`lsam basins` on files of `lsam surface`: table, files, what rounding makes, and one line per input error."""

import json
import sys

import h5py
import numpy as np
import pytest

from lsam_hpc.cli import main
from lsam_hpc.landscape import Surface, basins, read_surface, write_surface
from tests.helpers.landscapes import WORDS, write_run
from tests.helpers.small_model import read

X, Y = np.linspace(-1.5, 1.5, 31), np.linspace(-1, 1, 11)
TWO = (X**2 - 1) ** 2 + 0.3 * X + Y[:, None] ** 2 + 1


@pytest.fixture
def path(tmp_path):
    """Return two basins; in one loss a pit as deep as float32's rounding, in another a column without values."""
    rounded, cut = TWO.copy(), TWO.copy()
    rounded[0, 0] = TWO[:2, :2].min() - 5e-6
    cut[:, 15] = np.nan
    values = {"train_loss": rounded, "train_acc": 100 - TWO, "test_loss": cut, "train_loss_smoothed_se": 0 * TWO}
    write_surface(tmp_path / "surface.h5", Surface(X, Y, values))
    return tmp_path / "surface.h5"


def test_basins(path, tmp_path, capsys):
    assert main(["basins", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[:-4] == [
        "    values  basin   x  y  value  saddle_x  saddle_y  saddle  into  persistence  border",
        " test_loss      1  -1  0    0.7         -         -       -     -          inf       -",
        " test_loss      2   1  0    1.3         -         -       -     -          inf       -",
        "train_loss      1  -1  0    0.7         -         -       -     -          inf       -",
        "train_loss      2   1  0    1.3       0.1         0  2.0101     1       0.7101       -",
        "",
        "test_loss: 11 of 341 points have no value, and no basin crosses them",
        "test_loss: 1 basins never merge with the deepest one: missing points separate them",
    ]
    rows = read(tmp_path / "basins-surface.csv")
    assert [(row["values"], row["basin"], row["into"]) for row in rows] == [
        ("test_loss", "1", "0"),
        ("test_loss", "2", "0"),
        ("train_loss", "1", "0"),
        ("train_loss", "2", "1"),
    ]
    expected = basins(read_surface(path).values["train_loss"])
    assert len(expected) == 3  # the pit is left out above
    assert float(rows[3]["persistence"]) == expected[1].persistence
    assert [float(rows[3][name]) for name in ("x", "y", "saddle_x", "saddle_y")] == pytest.approx([1, 0, 0.1, 0])
    assert rows[0]["saddle"] == ""
    assert rows[0]["persistence"] == "inf"
    with h5py.File(tmp_path / "basins-surface.h5") as file:
        assert file["persistence"][3] == expected[1].persistence
        assert json.loads(file.attrs["lsam_hpc"])["surface"] == str(path)
    assert (tmp_path / "basins-surface.png").stat().st_size > 1000


def test_options(path, tmp_path, capsys):
    words = ["--values", "train_loss", "--out", str(tmp_path / "out"), "--format", "svg"]
    for least, count in ((0.0, 3), (0.711, 1), (0.7, 2)):
        name = f"least-{least}"
        assert main(["basins", str(path), *words, "--least", str(least), "--name", name]) == 0
        assert len(read(tmp_path / "out" / f"{name}.csv")) == count
        assert (tmp_path / "out" / f"{name}.svg").exists()
    assert "train_loss: at the border, so perhaps not a minimum: 3\n" in capsys.readouterr().out


def test_a_surface_of_a_run_in_float64(tmp_path):
    run = write_run(tmp_path / "run")
    words = ["--to", "0@0,1@0", "--kinds", "loss,sam", "--x=-1:2:4", "--y=-1:2:4", "--double"]
    assert main(["surface", str(run), *WORDS, *words]) == 0
    assert main(["basins", str(run / "figures" / "surface-center-to-0@0-1@0.h5")]) == 0
    with h5py.File(run / "figures" / "basins-surface-center-to-0@0-1@0.h5") as file:
        assert set(file["values"].asstr()) == {"train_loss", "train_loss_sam"}
        assert json.loads(file.attrs["lsam_hpc"])["epsilon"] == np.finfo(np.float64).eps


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{path}", "--values", "loss"], "--values: expected some of {names}, found 'loss'"),
        (["{path}", "--least", "nan"], "--least: expected a number >= 0, found nan"),
        (["{folder}/line.h5"], "{folder}/line.h5: expected a surface on a plane, found one on a line"),
        (["{folder}/error.h5"], "{folder}/error.h5: expected an array named ..._loss, found train_acc"),
        (["{folder}/empty.h5"], "{folder}/empty.h5: expected finite values of train_loss, found none"),
        (["{folder}"], "{folder}: expected a file, found something else"),
        (["{folder}/none.h5"], "{folder}/none.h5: expected a readable file, found: No such file or directory"),
    ],
)
def test_input_errors(path, capsys, words, message):
    write_surface(path.parent / "line.h5", Surface(X, None, {"train_loss": X}))
    write_surface(path.parent / "error.h5", Surface(X, Y, {"train_acc": TWO}))
    write_surface(path.parent / "empty.h5", Surface(X, Y, {"train_loss": TWO * np.nan}))
    fill = {"path": path, "folder": path.parent, "names": ", ".join(read_surface(path).values)}
    assert main(["basins", *(word.format(**fill) for word in words)]) == 2
    assert capsys.readouterr().err == f"lsam basins: {message.format(**fill)}\n"


def test_existing_files_and_a_missing_package(path, capsys, monkeypatch):
    (path.parent / "basins-surface.csv").write_text("")
    assert main(["basins", str(path)]) == 2
    assert "expected no such file, found one" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["basins", str(path)]) == 2
    assert "expected the package matplotlib, found none" in capsys.readouterr().err
