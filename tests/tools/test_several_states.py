"""`lsam basins`, `outliers`, `predict` and `learning-coefficient` of several runs, and their figures drawn again."""

import csv
import json
import math
import shutil

import h5py
import numpy as np
import pytest

from lsam_hpc.cli import main
from lsam_hpc.landscape import Surface, write_surface
from lsam_hpc.landscape.figures import draw_basins, draw_learning_coefficient, draw_outliers, draw_reliability
from lsam_hpc.landscape.figures.figures import save
from lsam_hpc.landscape.report.tables import note
from tests.helpers.landscapes import MODULE, SPLIT_WORDS, WORDS, write_run

SHORT = ("--draws", "30", "--warmup", "5", "--chains", "2", "--leapfrog", "2", "--gamma", "5")
IMAGES = ("--make-model", f"{MODULE}:image_classifier", "--make-batches", f"{MODULE}:square_images")
VERBS = {
    "outliers": ("--count", "3"),
    "predict": ("--from", "0"),
    "learning-coefficient": (*SHORT, "--at", "center,0@1"),
}
pytestmark = pytest.mark.usefixtures("torch_threads", "unrendered")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Return the paths of two runs, and change to the folder above them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    return [write_run(tmp_path / "runs" / name, seed=seed) for seed, name in enumerate(("sgd", "sam"))]


@pytest.fixture
def drawn(monkeypatch):
    """Return a list to which each figure is added."""
    figures = []
    for module in (draw_basins, draw_outliers, draw_reliability, draw_learning_coefficient):
        monkeypatch.setattr(module, "save", lambda figure, path: (figures.append(figure), save(figure, path))[1])
    return figures


def lsam(*words):
    return main([*map(str, words)])


def rows(file):
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def numbers(file):
    """Return the notes of a file, and its arrays by name."""
    with h5py.File(file) as opened:
        names = []
        opened.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
        return json.loads(opened.attrs["lsam_hpc"]), {name: opened[name][()] for name in names}


def surfaces(runs):
    """Write a surface for each run, with two basins or more in each loss, and return their files."""
    files = []
    for i, run in enumerate(runs):
        x, y = np.linspace(-1.5, 1.5, 13), np.linspace(-1, 1, 5)
        loss = (x**2 - 1) ** 2 + 0.3 * (1 + i) * x + y[:, None] ** 2 + 1 + 0.1 * np.cos(9 * (x + y[:, None]))
        values = {"train_loss": loss, "train_loss_sam": loss + 0.1 * x**2}
        (run / "figures").mkdir()
        files.append(run / "figures" / "surface.h5")
        write_surface(files[-1], Surface(x, y, values))
        labels = ["towards 0@0 (distance)", "towards 1@0, orthogonal to it (distance)"]
        note(files[-1], {"dtype": "torch.float64", "figure": {"title": run.name, "labels": labels}})
    return files


def test_outliers(runs, drawn):
    assert lsam("outliers", *runs, *WORDS, "--count", 3) == 0
    figure = drawn[-1]
    table = rows("figures/compare-outliers.csv")
    chosen = []
    for run, row, axis in zip(runs, table, figure.axes, strict=True):
        notes, arrays = numbers(run / "figures" / "outliers.h5")
        assert (row["run"], row["from"], row["to"]) == (run.name, *notes["between"])
        assert float(row["loss_before"]) == arrays["before"].mean()
        assert float(row["loss_after"]) == arrays["after"].mean()
        change = arrays["after"] - arrays["before"]
        outliers = np.r_[arrays["rising"], arrays["falling"]]
        assert float(row["%_of_all_changes"]) == pytest.approx(
            100 * np.abs(change[outliers]).sum() / np.abs(change).sum()
        )
        assert (int(row["rising"]), int(row["falling"])) == ((change > 0).sum(), (change < 0).sum())
        np.testing.assert_array_equal(axis.lines[0].get_xdata(), arrays["before"])
        chosen.append(set(outliers.tolist()))
        assert axis.get_title() == run.name
    assert table[0]["outliers_of_the_first_run"] == ""
    assert int(float(table[1]["outliers_of_the_first_run"])) == len(chosen[0] & chosen[1])
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim() == figure.axes[1].get_ylim()
    low, high = figure.axes[0].get_xlim()
    shown = np.concatenate([values for axis in figure.axes for values in axis.lines[0].get_data()])
    assert low < shown.min() < shown.max() < high
    assert "30 samples of other data" in figure.get_suptitle()
    assert {row["split"] for row in table} == {"other"}


def test_predictions_of_both_splits(runs, drawn):
    assert lsam("predict", *runs, *SPLIT_WORDS, "--from", 0, "--split", "both") == 0
    table = rows("figures/compare-predict-both.csv")
    of_center = [row for row in table if row["predictor"] == "center"]
    cases = [(name, split) for name in ("sgd", "sam") for split in ("train", "test")]
    assert [(row["run"], row["split"]) for row in of_center] == cases
    above = drawn[-1].axes[0]
    for (name, split), row, curve in zip(cases, of_center, above.lines, strict=False):
        notes, arrays = numbers(f"runs/{name}/figures/predict-{split}.h5")
        assert notes["split"] == split
        assert f"{split} data" in notes["figure"]["title"]
        assert [float(row[column]) for column in ("error_%", "NLL", "Brier", "ECE")] == [
            arrays["error"][0],
            arrays["losses"][0].mean(),
            arrays["brier"][0],
            arrays["ece"][0],
        ]
        known = arrays["counts"][0] > 0
        np.testing.assert_array_equal(curve.get_ydata(), arrays["hits"][0][known] / arrays["counts"][0][known])
        assert curve.get_linestyle() == {"train": "-", "test": "--"}[split]
        if name == "sam":  # against the same predictor of the first run, over the same images
            gaps = arrays["losses"][0] - numbers(f"runs/sgd/figures/predict-{split}.h5")[1]["losses"][0]
            assert float(row["NLL_-_first_run's"]) == pytest.approx(gaps.mean())
            assert float(row["+-"]) == pytest.approx(gaps.std(ddof=1) / math.sqrt(len(gaps)))
        else:
            assert row["NLL_-_first_run's"] == ""
    assert lsam("predict", *runs, *SPLIT_WORDS, "--json", "--overwrite") == 2


def test_learning_coefficients(runs, drawn):
    assert lsam("learning-coefficient", *runs, *WORDS, *VERBS["learning-coefficient"]) == 0
    table = rows("figures/compare-learning-coefficient.csv")
    assert [(row["run"], row["state"]) for row in table] == [
        (name, state) for name in ("sgd", "sam") for state in ("center", "0@1")
    ]
    own = [row for run in runs for row in rows(run / "figures" / "learning-coefficient.csv")]
    for row, alone in zip(table, own, strict=True):
        assert {name: row[name] for name in alone} == alone
        assert "draws" in row["problems"]  # 30 draws are too few
    figure = drawn[-1]
    for first, axes in ((figure.axes[0], figure.axes[1:3]), (figure.axes[3], figure.axes[4:6])):
        low, high = axes[0].get_ylim()
        assert axes[1].get_ylim() == (low, high)
        drawn_draws = np.concatenate([line.get_ydata() for axis in axes for line in axis.lines])
        assert low < drawn_draws.min() < drawn_draws.max() < high
        state = first.get_title().partition(":")[0]
        values = [float(row["lambda"]) for row in table if row["state"] == state]
        assert [bar.lines[0].get_ydata()[0] for bar in first.containers] == values
        for axis, row in zip(axes, [row for row in table if row["state"] == state], strict=True):
            assert f"R-hat {float(row['rhat']):.3f}" in axis.get_title()
            assert f"bulk {float(row['ess_bulk']):.0f}, tail {float(row['ess_tail']):.0f} of 60" in axis.get_title()


def test_basins(runs, drawn, capsys):
    files = surfaces(runs)
    capsys.readouterr()
    assert lsam("basins", *files) == 0
    printed = capsys.readouterr().out
    figure, table = drawn[-1], rows("figures/compare-basins.csv")
    values = ("train_loss", "train_loss_sam")
    assert [(row["run"], row["values"]) for row in table] == [(run.name, name) for run in runs for name in values]
    assert not list(runs[0].glob("figures/basins-*"))  # nothing is written for each surface
    for run, file in zip(runs, files, strict=True):
        assert lsam("basins", file) == 0
        own = rows(run / "figures" / f"basins-{file.stem}.csv")
        for row in (row for row in table if row["run"] == run.name):
            mine = [basin for basin in own if basin["values"] == row["values"]]
            assert int(row["basins"]) == len(mine)
            assert float(row["lowest_minimum"]) == float(mine[0]["value"])
            finite = [float(basin["persistence"]) for basin in mine if math.isfinite(float(basin["persistence"]))]
            assert row["largest_persistence"] == (repr(max(finite)) if finite else "")
            assert f"{float(mine[0]['value']):.5g}" in printed
    planes = [axis for axis in figure.axes if axis.get_aspect() == 1]
    assert len(planes) == 4  # both axes are distances
    levels = [next(c for c in axis.collections if hasattr(c, "levels")).levels for axis in planes]
    assert all(np.array_equal(each, levels[0]) for each in levels)
    trees = [axis for axis in figure.axes if axis.get_title().startswith("merge tree")]
    assert len({axis.get_ylim() for axis in trees}) == 1
    assert lsam("basins", files[0], files[0]) == 2


SLOW = pytest.mark.slow("two figures, drawn twice")


@pytest.mark.parametrize(
    "verb", ["outliers", *(pytest.param(v, marks=SLOW) for v in ("basins", "predict", "learning-coefficient"))]
)
def test_the_same_figures_without_the_runs(runs, rendered, verb, tmp_path, capsys):
    words = (*(IMAGES if verb == "outliers" else WORDS), *VERBS.get(verb, ()))
    each = surfaces(runs) if verb == "basins" else runs
    words = () if verb == "basins" else words
    assert lsam(verb, *each, *words, "--out", "out") == 0
    assert lsam(verb, each[0], *words, "--out", "alone", "--name", "a") == 0
    shutil.rmtree(tmp_path / "runs")
    shutil.rmtree(tmp_path / "out" / "sgd", ignore_errors=True)
    for file in (tmp_path / "out" / f"compare-{verb}.h5", tmp_path / "alone" / "a.h5"):
        assert lsam("redraw", file, "--name", "b") == 0
        assert file.with_name("b.png").read_bytes() == file.with_suffix(".png").read_bytes()
        assert lsam("redraw", file, "--name", "b", "--log", "--overwrite") == 2
        assert "--log: expected a figure of " in capsys.readouterr().err


def test_titles_and_notes_say_which_data_were_used(runs):
    for verb, words in {**VERBS, "sharpness": ("--steps", "2", "--case", "average")}.items():
        for data, split, expected in ((IMAGES, None, "other data, 30 samples"), (SPLIT_WORDS, "test", "test data, 16")):
            more = ("--split", split) if split else ()
            assert lsam(verb, runs[0], *data, *words, *more, "--name", f"{verb}-{split}") == 0
            notes, _ = numbers(runs[0] / "figures" / f"{verb}-{split}.h5")
            assert notes["split"] == split
            assert expected in notes["figure"]["title"]
            assert "train" not in notes["figure"]["title"]
