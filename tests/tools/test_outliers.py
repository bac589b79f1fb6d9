"""`lsam outliers`: table, files and figure, with images and without, and one line per input error."""

import json

import h5py
import numpy as np
import pytest
import torch

from lsam_hpc.cli import main
from lsam_hpc.landscape import outliers
from lsam_hpc.landscape.objective import Objective
from tests.helpers.landscapes import MODULE, WORDS, classifier, images, walks, write_run
from tests.helpers.small_model import read

IMAGES = ("--make-model", f"{MODULE}:image_classifier", "--make-batches", f"{MODULE}:square_images")


@pytest.fixture
def path(tmp_path):
    return write_run(tmp_path / "run")


@pytest.mark.parametrize(("words", "between"), [((), ((0, -2), (0, -1))), (("--between", "1@2,0@4"), ((1, 2), (0, 4)))])
def test_outliers(path, capsys, words, between):
    assert main(["outliers", str(path), *WORDS, *words, "--count", "3"]) == 0
    out = capsys.readouterr().out
    f = Objective(classifier(), images())
    first, second = (torch.from_numpy(walks()[at]) for at in between)
    expected = outliers(f, first, second, count=3)
    targets = torch.cat([y for _, y in images()])
    rows = read(path / "figures" / "outliers.csv")
    assert [int(row["index"]) for row in rows] == [*expected.rising, *expected.falling]
    opposes = {int(row["index"]): row["opposes"] for row in rows}
    for i, j in expected.pairs:
        rising, falling = expected.rising[i], expected.falling[j]
        assert (opposes.pop(rising), opposes.pop(falling)) == (str(falling), str(rising))
    assert set(opposes.values()) <= {"-"}
    cosines = {float(row["cosine"]) for row in rows if row["cosine"]}
    assert cosines == {expected.cosines[pair] for pair in expected.pairs}
    for row, norm in zip(rows, expected.norms, strict=True):
        index = int(row["index"])
        assert row["class"] == str(int(targets[index]))
        assert (float(row["before"]), float(row["after"])) == (expected.before[index], expected.after[index])
        assert float(row["change"]) == expected.change[index]
        assert float(row["gradient"]) == norm
        assert row["loss"] == ("rises" if expected.change[index] > 0 else "falls")
    assert f"these 6 samples make {100 * expected.share:.0f} % of the sum of all absolute changes" in out
    assert f"mean loss {expected.before.mean():.5g} at " in out
    with h5py.File(path / "figures" / "outliers.h5") as file:
        np.testing.assert_array_equal(file["after"][()], expected.after)
        assert json.loads(file.attrs["lsam_hpc"])["count"] == 3
    assert (path / "figures" / "outliers.png").stat().st_size > 1000


def test_images_are_drawn(path, monkeypatch):
    drawn = []
    monkeypatch.setattr("matplotlib.axes.Axes.imshow", lambda _, image, **__: drawn.append(image))
    assert main(["outliers", str(path), *IMAGES, "--count", "2"]) == 0
    rows = read(path / "figures" / "outliers.csv")
    inputs = torch.cat([x for x, _ in images()]).reshape(-1, 2, 2).double().numpy()[[int(row["index"]) for row in rows]]
    scaled = (inputs - inputs.min()) / (inputs.max() - inputs.min())
    assert len(drawn) == len(rows) == 4
    assert sorted(image.tolist() for image in drawn) == sorted(scaled.tolist())
    drawn.clear()
    assert main(["outliers", str(path), *WORDS, "--overwrite"]) == 0
    assert not drawn


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--count", "0"], "--count: expected 1 or more, found 0"),
        (["--between", "0@1"], "--between: expected two states as in 0@3,0@4, found '0@1'"),
        (["--between", "0@1,0@1"], "0@1: expected another state than 0@1, found the same parameters"),
        (["--between", "0@1,5"], "{path}: expected a rank of 0, 1, found 5"),
    ],
)
def test_input_errors(path, capsys, words, message):
    assert main(["outliers", str(path), *WORDS, *words]) == 2
    assert capsys.readouterr().err == f"lsam outliers: {message.format(path=path)}\n"
    assert not list((path / "figures").glob("*"))
