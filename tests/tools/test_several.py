"""Programs with several runs: the numbers of separate runs, in one table and in one figure on one scale."""

import csv
import json
import re
import shutil
import sys

import h5py
import numpy as np
import pytest
import torch

from lsam_hpc.cli import main
from lsam_hpc.landscape import Edge, Limits, Objective, lines, read_surface
from lsam_hpc.landscape.chains.diagnosis import diagnose
from lsam_hpc.landscape.chains.statistics import chains
from lsam_hpc.landscape.compare import chains as compared_chains
from lsam_hpc.landscape.compare import paths, spectra, surfaces, tracks
from lsam_hpc.landscape.compare.comparison import Case
from lsam_hpc.landscape.figures import draw_curvature
from lsam_hpc.landscape.figures.figures import save
from lsam_hpc.landscape.figures.stored import read
from lsam_hpc.tools import surface as surface_program
from lsam_hpc.tools.spectrum_files import write_edge
from lsam_hpc.trajectory import CountSketch, Run, Snapshots, TrajectoryWriter
from tests.helpers.logs import attributes
from tests.helpers.mpis import run as run_command

MODULE = """
import numpy as np
from torch import nn

TEACHER = np.random.default_rng(9).standard_normal(43).astype(np.float32)

def load(directory):
    x = np.random.default_rng(0).standard_normal((60, 1, 2, 2)).astype(np.float32)
    w, b, v, c = TEACHER[:20].reshape(5, 4), TEACHER[20:25], TEACHER[25:40].reshape(3, 5), TEACHER[40:]
    y = (np.tanh(x.reshape(60, 4) @ w.T + b) @ v.T + c).argmax(1)
    return x[:40], y[:40], x[40:], y[40:]

def other(directory):
    x, y, *test = load(directory)
    return 2 * x, y, *test

def network(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, classes))

def flat(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(4, classes))

def wide(shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, classes))
"""
LAYOUT = [("1.weight", (5, 4)), ("1.bias", (5,)), ("3.weight", (3, 5)), ("3.bias", (3,))]
WIDE = [("1.weight", (6, 4)), ("1.bias", (6,)), ("3.weight", (3, 6)), ("3.bias", (3,))]
FLAT = [("1.weight", (3, 4)), ("1.bias", (3,))]
STATES = 4
pytestmark = pytest.mark.usefixtures("torch_threads", "unrendered")


def write(path, seed, layout=LAYOUT, ranks=2, snapshots=True, **config):
    """Write a run whose samples walk around twice the teacher's parameters; its center is half of rank 0's sample.

    The signs of all hidden units differ between ranks and seeds, which does not change the teacher's function.
    """
    import compared

    path.mkdir(parents=True)
    options = {"data": "compared:load", "model": "compared:network", "rho": 0.1, "momentum": 0.5, **config}
    (path / "config.json").write_text(json.dumps(options))
    size = sum(int(np.prod(shape)) for _, shape in layout)
    random = np.random.default_rng(seed)
    walk = random.standard_normal((STATES, ranks, size)).cumsum(0).astype(np.float32) / 10
    if layout is LAYOUT:
        signs = np.where(np.arange(size) < 40, (-1) ** (seed + np.arange(ranks)[:, None]), 1)
        walk += 2 * compared.TEACHER * signs
    for rank in range(ranks):
        more = {"snapshots": Snapshots()} if snapshots else {}
        sketch = CountSketch(size, buckets=16)
        with TrajectoryWriter(path, rank, layout, attributes(ranks), sketch=sketch, curvature=True, **more) as writer:
            for i in range(60):
                if i % 20 == 0:
                    numbers = {"eigenvalue": 1 + random.random(), "residual": 0.1, "products": 3, "seconds": 0.1}
                    writer.curvature(iteration=i, total_iteration=ranks * i + rank, **numbers)
                writer.step(iteration=i, total_iteration=ranks * i + rank, loss=1 + random.random(), lr=0.1)
                numbers = {"version_read": i, "version_added": i, "staleness": i % 2, "accepted": 1, "blocked": 1e-9}
                writer.exchange(began=float(i), iteration=i, center_distance=1 + random.random(), **numbers)
                writer.sketch("sample", sketch(random.standard_normal(size).astype(np.float32)), i, i)
            for i, vector in enumerate(walk[:, rank] if snapshots else []):
                writer.snapshot("sample", vector, 10 * i, i)
                writer.snapshot("center", walk[i, 0] / 2, 10 * i, i)
    return path


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Return the paths of two runs, and change to the folder above them."""
    (tmp_path / "compared.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "compared", raising=False)
    monkeypatch.chdir(tmp_path)
    return [write(tmp_path / "runs" / name, seed) for seed, name in enumerate(("sgd", "sam"))]


@pytest.fixture
def drawn(monkeypatch):
    """Return a list to which each figure of a comparison is added."""
    figures = []
    for module in (surfaces, spectra, paths, tracks, compared_chains):
        monkeypatch.setattr(module, "save", lambda figure, path: (figures.append(figure), save(figure, path))[1])
    return figures


def lsam(verb, *words):
    return main([verb, *map(str, words)])


def rows(file):
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def test_spectra_of_different_models(runs, drawn, tmp_path):
    flat = write(tmp_path / "runs" / "flat", 7, FLAT, model="compared:flat")
    words = ("--layers", "--kinds", "eigenvalues,trace", "--eigenvalues", "2")
    assert lsam("spectrum", flat, runs[0], *words) == 0
    table = [row for row in rows(tmp_path / "figures" / "compare-spectrum-center.csv") if row["matrix"] == "ggn"]
    layers = {run: [row["layer"] for row in table if row["run"] == run] for run in ("flat", "sgd")}
    assert layers == {"flat": ["all", "1"], "sgd": ["all", "1", "3"]}
    assert [tick.get_text() for tick in drawn[0].axes[2].get_yticklabels()] == ["1", "3"]


def test_comparisons_of_spectra_keep_each_other_s_record(runs, capsys):
    spectrum = ("--eigenvalues", "2", "--kinds", "eigenvalues")
    for words in (spectrum, ("--along", "sample")):
        assert lsam("spectrum", *runs, *words) == 0
    for words in (spectrum, ("--along", "sample")):
        capsys.readouterr()
        assert lsam("spectrum", *runs, *words, "--overwrite") == 0
        assert "read again: sgd, sam" in capsys.readouterr().out


def test_lines_of_train_and_test_data(runs, drawn, tmp_path, capsys):
    words = ("--line", "--x=-1:1:5", "--kinds", "loss,sam")
    assert lsam("surface", *runs, *words, "--split", "both") == 0
    printed = capsys.readouterr().out
    table = rows("figures/compare-surface-center-random-line-both.csv")
    assert [(r["run"], r["split"]) for r in table[::2]] == [(n, s) for n in ("sgd", "sam") for s in ("train", "test")]
    figure = drawn[0]
    loss, sam, error = figure.axes
    assert loss.get_ylim() == sam.get_ylim()
    expected = {}
    for run in runs:
        for split in ("train", "test"):
            out = tmp_path / f"{run.name}-{split}"
            assert lsam("surface", run, *words, "--split", split, "--out", out) == 0
            values = read_surface(out / "surface-center-random-line.h5").values
            expected[f"{run.name}, {split}"] = values
            row = next(r for r in table if (r["run"], r["split"], r["value"]) == (run.name, split, "loss"))
            of_split = values[f"{split}_loss"]
            assert float(row["at_0"]) == of_split[2]
            assert (float(row["smallest"]), float(row["largest"])) == (of_split.min(), of_split.max())
            assert float(row["mean_rise"]) == pytest.approx(of_split.mean() - of_split[2])
            assert f"{of_split[2]:.5g}" in printed
    losses = np.concatenate([v for of_case in expected.values() for n, v in of_case.items() if "acc" not in n])
    assert loss.get_ylim()[0] <= losses.min() < losses.max() <= loss.get_ylim()[1]
    for axis, name in ((loss, "loss"), (sam, "loss_sam")):
        curves = {line.get_label(): line.get_ydata() for line in axis.lines if line.get_label() in expected}
        assert list(curves) == list(expected)
        for label, values in expected.items():
            np.testing.assert_array_equal(curves[label], values[f"{label.split()[-1]}_{name}"])
    assert len(error.lines) == 4 + 1  # and the mark of the state
    assert (expected["sgd, train"]["train_loss"] != expected["sgd, test"]["test_loss"]).all()


def test_both_splits_of_one_run(runs, drawn):
    assert lsam("surface", runs[0], "--line", "--x=-1:1:3", "--split", "both") == 0
    assert [line.get_label() for line in drawn[0].axes[0].lines[:2]] == ["sgd, train", "sgd, test"]
    assert lsam("path", runs[0], "--points", 3, "--split", "both") == 0
    assert [row["split"] for row in rows("figures/compare-path-matrix-both.csv")] == ["train", "test"]


def test_planes_have_common_levels(runs, drawn):
    assert lsam("surface", *runs, "--x=-1:1:4", "--y=-1:1:3") == 0
    from matplotlib.contour import QuadContourSet

    panels = [axis for axis in drawn[0].axes if axis.get_xlim() == (-1, 1) and axis.get_ylim() == (-1, 1)]
    assert len(panels) == 4
    for of_kind, name in ((panels[:2], "train_loss"), (panels[2:], "train_acc")):
        filled = [next(c for c in axis.collections if isinstance(c, QuadContourSet)) for axis in of_kind]
        stored = [read_surface(run / "figures" / "surface-center-random.h5").values[name] for run in runs]
        stored = stored if name == "train_loss" else [100 - values for values in stored]
        for contour in filled:
            np.testing.assert_array_equal(contour.levels, filled[0].levels)
            low, second, *_, last, high = contour.levels  # round numbers around all values
            assert (contour.norm.vmin, contour.norm.vmax) == (low, high)
            assert low <= np.min(stored) < second
            assert last < np.max(stored) <= high
    assert [axis.get_title() for axis in panels[:2]] == ["sgd", "sam"]


def test_the_same_random_numbers_in_all_runs(runs):
    from lsam_hpc.landscape import read_directions

    assert lsam("surface", *runs, "--line", "--x=-1:1:3") == 0
    first, second = (
        read_directions(run / "figures" / "surface-center-random-line-directions.h5", Run(run).layout) for run in runs
    )
    for at in range(0, 20, 4):  # filters of the first layer: the same direction, of the length that the filter has
        d, e = first.x[at : at + 4], second.x[at : at + 4]
        np.testing.assert_allclose(d / np.linalg.norm(d), e / np.linalg.norm(e), rtol=1e-5)
        assert np.linalg.norm(e) == pytest.approx(np.linalg.norm(second.origin[at : at + 4]), rel=1e-5)


def test_spectra(runs, drawn, tmp_path):
    words = ("--eigenvalues", 2, "--repeats", 2, "--products", 6, "--steps", 5, "--double", "--layers")
    assert lsam("spectrum", *runs, *words) == 0
    table = rows("figures/compare-spectrum-center.csv")
    hessian, ggn = drawn[0].axes[:2]
    assert hessian.get_xlim() == ggn.get_xlim() or hessian.get_ylim() == ggn.get_ylim()
    for number, run in enumerate(runs):
        assert lsam("spectrum", run, *words, "--out", tmp_path / run.name) == 0
        with h5py.File(tmp_path / run.name / "spectrum-center.h5") as file:
            for matrix, axis in (("hessian", hessian), ("ggn", ggn)):
                for layer in ("all", "1", "3"):
                    row = next(r for r in table if (r["run"], r["matrix"], r["layer"]) == (run.name, matrix, layer))
                    values = file[f"{matrix}/{layer}/eigenvalues"][()]
                    assert (float(row["largest"]), float(row["second"])) == tuple(values[:2])
                    if "smallest" in file[f"{matrix}/{layer}"]:
                        assert float(row["smallest"]) == file[f"{matrix}/{layer}/smallest"][0]
                    assert float(row["trace"]) == file[f"{matrix}/{layer}/trace"][()]
                assert float(row["+-"]) == file[f"{matrix}/3/trace_error"][()]
                ticks = axis.lines[len(runs) + number]
                np.testing.assert_array_equal(ticks.get_xdata(), file[f"{matrix}/all/eigenvalues"][()])


@pytest.mark.slow("eigenvalues at 16 snapshots; test_spectra tests the program")
def test_sharpness_while_training(runs, drawn, tmp_path):
    assert lsam("spectrum", *runs, "--along", "center", "--double") == 0
    table = rows("figures/compare-spectrum-center-edge.csv")
    curves = [line for line in drawn[0].axes[0].lines if line.get_marker() == "o"]
    for run, row, line in zip(runs, table, curves, strict=True):
        assert lsam("spectrum", run, "--along", "center", "--double", "--out", tmp_path / run.name) == 0
        edge = rows(tmp_path / run.name / "spectrum-center-edge.csv")
        tops = [float(r["sharpness"]) for r in edge]
        assert (float(row["first"]), float(row["largest"])) == (tops[0], max(tops))
        ratios = [float(r["sharpness"]) / float(r["momentum_limit"]) for r in edge]
        assert float(row["most_of_limit"]) == pytest.approx(max(ratios))
        np.testing.assert_array_equal(line.get_ydata(), tops)


def test_sharpness_that_was_measured_while_training(runs, drawn):
    assert lsam("spectrum", *runs, "--along", "measured") == 0
    assert {row["measurements"] for row in rows("figures/compare-spectrum-center-edge.csv")} == {"6"}
    curves = iter(line for line in drawn[0].axes[0].lines if line.get_marker() == "o")
    for run, row in zip(runs, rows("figures/compare-spectrum-center-edge.csv"), strict=True):
        values = [Run(run).log(rank).table("curvature")["eigenvalue"] for rank in (0, 1)]
        assert float(row["largest"]) == np.max(values)
        for of_rank in values:
            np.testing.assert_array_equal(next(curves).get_ydata(), of_rank)


def test_sharpness(runs, tmp_path, capsys):
    words = ("--rho", "0.1,0.2", "--m", 20, "--steps", 2, "--case", "worst", "--at", "center,1", "--split", "both")
    assert lsam("sharpness", *runs, *words) == 0
    table = rows("figures/compare-sharpness-both.csv")
    head = capsys.readouterr().out.splitlines()[0]
    assert re.split(" {2,}", head.strip())[-4:] == ["sgd, train", "sgd, test", "sam, train", "sam, test"]
    for run in runs:
        for split in ("train", "test"):
            out = tmp_path / f"{run.name}-{split}"
            assert lsam("sharpness", run, *words[:-1], split, "--out", out) == 0
            own = rows(out / "sharpness.csv")
            joint = [{k: r[k] for k in own[0]} for r in table if (r["run"], r["split"]) == (run.name, split)]
            assert joint == own


def test_barriers_inside_runs_and_between_centers(runs, drawn, tmp_path, capsys):
    assert lsam("path", *runs, "--points", 5) == 0
    printed = capsys.readouterr().out
    table = rows("figures/compare-path-matrix.csv")
    for run, row in zip(runs, table, strict=False):
        assert lsam("path", run, "--points", 5, "--out", tmp_path / run.name) == 0
        own = [float(r["barrier"]) for r in rows(tmp_path / run.name / "path-matrix.csv")]
        assert float(row["highest_barrier"]) == max(own)
        assert float(row["mean_barrier"]) == pytest.approx(np.mean(own))
        assert min(own) < np.mean(own) < max(own)
    import compared

    x, y, *_ = compared.load(None)
    f = Objective(compared.network((1, 2, 2), 3).double(), [(torch.from_numpy(x).double(), torch.from_numpy(y))])
    centers = [Run(run).snapshot(0, -1, "center") for run in runs]
    matrix = lines(f, centers, ["sgd", "sam"], 5)
    between = next(row for row in table if row["to_run"])
    assert float(between["highest_barrier"]) == pytest.approx(matrix.barriers[0, 1], abs=1e-12)
    assert f"{matrix.barriers[0, 1]:.5g}" in printed
    assert matrix.barriers[0, 1] > 0
    assert len({axis.get_ylim() for axis in drawn[0].axes}) == 1
    assert [axis.get_title() for axis in drawn[0].axes] == ["inside sgd", "inside sam", "between the centers"]
    np.testing.assert_allclose(drawn[0].axes[2].lines[0].get_ydata(), matrix.loss[0, 1], rtol=1e-9)


def test_a_run_of_one_rank_and_a_path_between_two_states(runs, drawn, tmp_path):
    alone = write(tmp_path / "runs" / "alone", 5, ranks=1)
    assert lsam("path", runs[0], alone, "--points", 3) == 0
    table = rows("figures/compare-path-matrix.csv")
    assert [row["highest_barrier"] == "" for row in table] == [False, True, False]
    assert lsam("path", *runs, "--between", "0@0,0", "--points", 3) == 0
    table = rows("figures/compare-path-0@0-0.csv")
    for run, row, line in zip(runs, table, drawn[1].axes[0].lines, strict=True):
        with h5py.File(run / "figures" / "path-0@0-0.h5") as file:
            np.testing.assert_array_equal(line.get_ydata(), file["straight_loss"][()])
            assert float(row["barrier"]) == file["straight_barrier"][()]


@pytest.mark.parametrize("words", [("--surface", 4, "--losses"), ("--source", "sketches")])
def test_trajectories_have_equal_scales(runs, drawn, words):
    for run in runs:
        (run / "checkpoints").mkdir()
    assert lsam("trajectory", *runs, *words) == 0
    table = rows("figures/compare-trajectory.csv")
    planes = drawn[0].axes[:2]
    extents = [[np.ptp(limits) for limits in (axis.get_xlim(), axis.get_ylim())] for axis in planes]
    np.testing.assert_allclose(extents[0], extents[1])
    assert all(axis.get_aspect() == 1 for axis in planes)
    for run, row, axis in zip(runs, table, planes, strict=True):
        with h5py.File(run / "figures" / "trajectory.h5") as file:
            of_rank = file["rank"][()] == 1
            track = next(line for line in axis.lines[3:4])
            x = file["x"][()]  # turned as in the figure of the run alone
            np.testing.assert_array_equal(track.get_xdata(), x[of_rank])
            assert float(row["off_plane_(median)"]) == np.median(file["off_plane"][()])
            low, high = axis.get_xlim()
            assert low <= x.min() <= x.max() <= high
    if "--surface" in words:
        from matplotlib.contour import QuadContourSet

        filled = [next(c for c in axis.collections if isinstance(c, QuadContourSet)) for axis in planes]
        np.testing.assert_array_equal(filled[0].levels, filled[1].levels)
        files = [h5py.File(run / "figures" / "trajectory.h5") for run in runs]
        values = np.concatenate([file["surface/loss"][()] for file in files])
        low, second, *_, last, high = filled[1].levels
        assert low <= values.min() < second
        assert last < values.max() <= high
        losses = drawn[0].axes[2:4]
        assert losses[0].get_ylim() == losses[1].get_ylim()


COMPARED = {
    "line": ("surface", "--line", "--x=-1:1:3", "--split", "both"),
    "plane": ("surface", "--x=-1:1:3", "--y=-1:1:3", "--to", "0@0,1@0"),
    "spectrum": ("spectrum", "--eigenvalues", 2, "--repeats", 2, "--products", 3, "--steps", 4, "--layers"),
    "classes": ("spectrum", "--eigenvalues", 2, "--class", "all", "--kinds", "eigenvalues"),
    "edge": ("spectrum", "--along", "measured"),
    "sharpness": ("sharpness", "--rho", "0.1,0.2", "--m", 20, "--steps", 2, "--case", "worst"),
    "matrix": ("path", "--points", 3),
    "profiles": ("path", "--between", "0@0,0", "--points", 3),
    "trajectory": ("trajectory", "--surface", 3, "--losses"),
    "diagnose": ("diagnose", "--from", 0.25),
}


LONG = ("plane", "spectrum", "classes", "trajectory", "diagnose")
SLOW = pytest.mark.slow("two runs analysed, and their figure drawn twice")


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW) if name in LONG else name for name in COMPARED])
def test_a_comparison_is_drawn_again_without_the_runs(runs, rendered, tmp_path, name):
    verb, *words = COMPARED[name]
    assert lsam(verb, *runs, *words) == 0
    (file,) = (tmp_path / "figures").glob("*.h5")
    shutil.rmtree(tmp_path / "runs")
    assert main(["redraw", str(file), "--name", "again"]) == 0
    assert file.with_name("again.png").read_bytes() == file.with_suffix(".png").read_bytes()


def test_each_run_s_center_has_its_own_colour(runs, drawn):
    assert lsam("trajectory", *runs) == 0
    centers = [next(line for line in axis.lines if line.get_linewidth() == 4) for axis in drawn[0].axes[:2]]
    legend = {
        t.get_text(): h for t, h in zip(drawn[0].legends[0].texts, drawn[0].legends[0].legend_handles, strict=True)
    }
    colours = [legend[f"center of {name}"].get_color() for name in ("sgd", "sam")]
    assert colours == [line.get_color() for line in centers]
    assert len(set(colours)) == 2


def test_limits_are_those_of_a_run_alone(drawn, tmp_path, monkeypatch):
    alone = []
    monkeypatch.setattr(draw_curvature, "save", lambda figure, path: (alone.append(figure), path)[1])
    steps = np.arange(90.0)
    numbers = {"total_iteration": steps, "lr": 0.1 / (1 + steps), "ratio": 0.01 + steps % 7}  # r is noisy
    limits, at = Limits(**numbers, momentum=0.9), np.arange(0, 90, 30)
    own = dict.fromkeys(("sharpness", "update_sharpness", "gradient_sharpness", "flow_sharpness"), 1.0 + at)
    of_rows = {name: values[at] for name, values in numbers.items()}
    edge = Edge(**of_rows, **own, momentum=0.9, rank=0 * at, iteration=at, logged=limits)
    out = {end: tmp_path / f"a{end}" for end in ("-edge.csv", "-edge.h5", "-edge.png")}
    write_edge(out, edge, "run", format_="png", flow=False)
    numbers = [read(out["-edge.h5"])] * 2
    cases = [Case(name, "", i, tmp_path) for i, name in enumerate("ab")]
    spectra.compare_edges(cases, numbers, {"title": "", "counted": "snapshots"}).draw(tmp_path / "b.png")
    of_run = {line.get_label(): line.get_xydata() for line in alone[0].axes[0].lines if line.get_label()[0] != "_"}
    (sam,) = (at for label, at in of_run.items() if label.startswith("SAM's limit"))
    (momentum,) = (at for label, at in of_run.items() if label.startswith("2 (1 + 0.9)"))
    assert not np.array_equal(sam[:, 1], limits.sam_limit)  # but its running median
    lines = [line.get_xydata() for line in drawn[0].axes[0].lines]
    for expected in (sam, momentum):
        assert sum(np.array_equal(line, expected) for line in lines) == 2


def test_diagnoses(runs, drawn, capsys):
    assert lsam("diagnose", *runs, "--from", 0.25) == 0
    lines = [re.split(" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["sgd", "sam"]
    printed = {line[0]: line[1:] for line in lines[1:]}
    table = rows("figures/compare-diagnose.csv")
    for number, run in enumerate(runs):
        statistics = chains(Run(run), 0.25)
        for quantity in statistics.quantities:
            assert printed[f"{quantity.name}: R-hat"][number] == f"{quantity.mixing.rhat:.3f}"
            assert printed[f"{quantity.name}: bulk ESS"][number] == f"{quantity.mixing.ess_bulk:.0f}"
        own = {check.name: check for check in diagnose(statistics)}
        for row in (row for row in table if row["run"] == run.name):
            assert float(row["value"] or "nan") == pytest.approx(own[row["name"]].value, nan_ok=True)
            assert row["good"] == ("" if own[row["name"]].good is None else str(own[row["name"]].good))
    assert len(drawn[0].axes) == 6
    assert not (runs[0] / "figures").exists()
    assert lsam("diagnose", *runs, "--json", "--overwrite") == 0
    assert list(json.loads(capsys.readouterr().out)) == ["sgd", "sam"]


def test_summaries(runs, tmp_path, capsys):
    write(tmp_path / "runs" / "third", 2, ranks=3, rho=0.2)
    assert main(["inspect", *map(str, runs), str(tmp_path / "runs" / "third")]) == 0
    lines = [re.split(" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["sgd", "sam", "third"]
    printed = {line[0]: line[1:] for line in lines[1:]}
    assert printed["steps of all ranks"] == ["120", "120", "180"]
    last = [np.mean([Run(run).steps(rank)["loss"][-1] for rank in (0, 1)]) for run in runs]
    assert printed["last loss, mean of ranks"][:2] == [f"{loss:.5g}" for loss in last]
    assert printed["option rho"] == ["0.1", "0.1", "0.2"]
    assert "option data" not in printed
    assert main(["inspect", *map(str, runs), "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["sgd", "sam"]
    assert main(["inspect", *map(str, runs), "--verify"]) == 2
    assert "--verify: expected one run, found 2" in capsys.readouterr().err


def refused(capsys, verb, *words):
    capsys.readouterr()
    assert lsam(verb, *words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_runs_that_cannot_be_compared(runs, tmp_path, capsys):
    sgd, sam = runs
    bare = write(tmp_path / "runs" / "bare", 2, snapshots=False)
    others = write(tmp_path / "runs" / "others", 3, data="compared:other")
    for verb in ("surface", "spectrum", "sharpness", "path"):
        assert f"lsam {verb}: {bare}: expected snapshots of the " in refused(capsys, verb, sgd, bare)
    for verb in ("surface", "spectrum", "sharpness", "path"):
        line = refused(capsys, verb, sgd, others)
        expected = "expected the same data set in all runs, found compared:load in sgd and compared:other in others"
        assert expected in line
    for verb in ("surface", "trajectory", "diagnose"):
        assert f"RUN: expected different runs, found {sgd} twice" in refused(capsys, verb, sgd, sam, sgd)
        assert "none" in refused(capsys, verb, sgd, tmp_path / "none")
    assert "eigenvector: splits have their own" in refused(
        capsys, "surface", sgd, "--split", "both", "--directions", "eigenvector"
    )
    line = refused(capsys, "surface", sgd, "--split", "both", "--make-batches", "a:b", "--make-model", "a:b")
    assert "expected a data set with two splits" in line
    assert "--flow: expected one run" in refused(capsys, "spectrum", sgd, sam, "--flow")
    assert "excludes --at, --kinds" in refused(capsys, "spectrum", sgd, sam, "--along", "center", "--at", "0")
    assert refused(capsys, "surface", sgd, sam, "--at", "centre").startswith(f"lsam surface: {sgd}: state: expected ")
    assert "lsam surface: --x: expected FROM:TO:POINTS" in refused(capsys, "surface", sgd, sam, "--x", "1")
    line = refused(capsys, "surface", sgd, sam, "--out", "runs")
    assert "--out: expected another folder than that of the run" in line
    assert not (tmp_path / "figures").exists()
    assert not any((run / "figures").exists() for run in (sgd, sam, bare, others))


def test_runs_that_differ_are_compared_with_a_warning(runs, tmp_path, capsys):
    other = write(tmp_path / "runs" / "wide", 4, WIDE, model="compared:wide", rho=0.2, subset=30)
    words = ("--line", "--x=-1:1:3", "--kinds", "sam", "--quiet")
    assert lsam("surface", runs[0], other, *words) == 0
    warnings = capsys.readouterr().err.splitlines()
    assert warnings == [
        "warning: sgd and wide have different models: distances and curvatures depend on the parametrization",
        "warning: sgd and wide have different train samples: compare them with care",
        "warning: rho: 0.1 in sgd, 0.2 in wide: --rho sets one for all",
    ]
    assert lsam("path", runs[0], other, "--points", 3) == 0
    assert "between centers" not in capsys.readouterr().out
    assert lsam("surface", *runs, *words, "--overwrite") == 0
    assert capsys.readouterr().err == ""


def test_numbers_are_computed_once(runs, tmp_path, capsys, monkeypatch):
    words = ("--line", "--x=-1:1:3")
    assert lsam("surface", *runs, *words) == 0
    first = rows("figures/compare-surface-center-random-line.csv")
    third = write(tmp_path / "runs" / "third", 7)
    scanned = []
    scan = surface_program.landscape.scan
    monkeypatch.setattr(
        surface_program.landscape, "scan", lambda *a, **k: (scanned.append(k["options"]["run"]), scan(*a, **k))[1]
    )
    assert "expected no such file" in refused(capsys, "surface", *runs, *words)
    assert lsam("surface", *runs, third, *words, "--overwrite") == 0
    assert scanned == [str(third)]
    assert "computed before with the same options, and read again: sgd, sam" in capsys.readouterr().out
    assert rows("figures/compare-surface-center-random-line.csv")[:2] == first
    # Other options, another state, or files changed by other programs are computed again, only with --overwrite.
    for file in (tmp_path / "figures").iterdir():
        file.unlink()
    numbers = runs[0] / "figures" / "surface-center-random-line.h5"
    assert f"{numbers}: expected no such file" in refused(capsys, "surface", *runs, *words, "--seed", 1)
    assert not list((tmp_path / "figures").iterdir())
    assert lsam("surface", *runs, *words, "--overwrite") == 0
    assert scanned == [str(third)]
    numbers.write_bytes(b"")
    scanned.clear()
    assert lsam("surface", *runs, *words, "--overwrite") == 0
    assert scanned == [str(runs[0])]
    assert rows("figures/compare-surface-center-random-line.csv") == first


def test_all_files_go_to_the_folder_that_out_names(runs, tmp_path, rendered):
    assert lsam("surface", *runs, "--line", "--x=-1:1:3", "--out", "o") == 0
    assert not any((run / "figures").exists() for run in runs)
    names = {str(file.relative_to(tmp_path / "o")) for file in (tmp_path / "o").rglob("*.*")}
    base = "surface-center-random-line"
    assert names == {f"compare-{base}{end}" for end in (".png", ".h5", ".csv")} | {
        f"{run.name}/{base}{end}" for run in runs for end in (".png", ".h5", ".csv", "-directions.h5", "-compare.json")
    }


@pytest.mark.slow("a job of two ranks")
def test_the_same_numbers_on_two_ranks(runs, tmp_path, mpi):
    assert lsam("path", *runs, "--points", 5) == 0
    words = ["path", *map(str, runs), "--points", "5", "--out", str(tmp_path / "job")]
    command = mpi.command(2, mpi.forked, "-m", "mpi4py", "-m", "lsam_hpc", *words)
    done = run_command(command, timeout=200, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("compare-path-matrix.csv") == 1
    name = "compare-path-matrix.csv"
    assert (tmp_path / "job" / name).read_bytes() == (tmp_path / "figures" / name).read_bytes()
