"""`lsam trajectory`: coordinates, losses and figures from snapshots and from sketches."""

import re

import h5py
import numpy as np
import pytest
import torch

from lsam_hpc.cli import main
from lsam_hpc.landscape.objective import Objective
from tests.helpers.landscapes import SIZE, WORDS, classifier, images, walks, write_run

MODULE = "tests.helpers.landscapes"
pytestmark = pytest.mark.usefixtures("torch_threads")


@pytest.fixture
def path(tmp_path):
    return write_run(tmp_path / "run", sketches=True)


def trajectory(path, *words):
    return main(["trajectory", str(path), *WORDS, *map(str, words)])


def table(path, name="trajectory"):
    return np.genfromtxt(path / "figures" / f"{name}.csv", delimiter=",", names=True)


def test_snapshots_with_losses_and_a_surface(path, capsys):
    (path / "checkpoints").mkdir()
    last = torch.from_numpy(walks()[0, -1])
    torch.save({"weight": last[:12].reshape(3, 4), "bias": last[12:]}, path / "checkpoints" / "best.pt")
    torch.save({"step": 3}, path / "checkpoints" / "other.pt")
    assert trajectory(path, "--losses", "--surface", 5) == 0
    columns = table(path)
    samples = walks().reshape(-1, SIZE)
    f = Objective(classifier(), images())
    np.testing.assert_allclose(columns["loss"], [f(torch.from_numpy(x)).loss for x in samples], rtol=1e-6)
    with h5py.File(path / "figures" / "trajectory.h5") as file:
        d, origin = file["directions"][()].astype(np.float64), file["origin"][()]
        at = np.stack([columns["x"], columns["y"]], 1)
        np.testing.assert_allclose((samples - origin) @ d.T, at, atol=1e-5)
        below = [f(torch.from_numpy(origin + place @ d)).loss for place in at]
        np.testing.assert_allclose(columns["plane_loss"], below, rtol=1e-4)
        x, y = file["surface/x"][2], file["surface/y"][3]
        expected = f(torch.from_numpy(origin + x * d[0] + y * d[1])).loss
        assert file["surface/loss"][3, 2] == pytest.approx(expected, rel=1e-5)
        assert list(file["marks"].asstr()) == ["checkpoint best"]
        np.testing.assert_allclose(file["marks_at"][0], at[5], atol=1e-5)
    printed = capsys.readouterr()
    assert re.search(r"plane: \d+\.\d\d % of the samples' variance", printed.out)
    assert "other.pt: expected weight of shape (3, 4), found none: it is not drawn" in printed.err
    assert not list((path / "figures").glob("*.part"))


def test_sketches_where_there_are_no_snapshots(tmp_path, capsys):
    path = write_run(tmp_path / "run", snapshots=False, sketches=True)
    assert trajectory(path, "--format", "svg") == 0
    text = (path / "figures" / "trajectory.svg").read_text()
    assert "2 ranks, from sketches" in text
    assert "distance from the plane" in text
    both = write_run(tmp_path / "both", sketches=True)
    assert trajectory(both) == 0
    assert trajectory(both, "--source", "sketches", "--name", "sketched") == 0
    for name in ("x", "y"):
        # 15 elements in 32 buckets are exact: snapshots and sketches agree except for the directions' signs.
        np.testing.assert_allclose(np.abs(table(both)[name]), np.abs(table(path)[name]), atol=1e-4)
        np.testing.assert_allclose(table(both, "sketched")[name], table(path)[name], atol=1e-6)


def test_a_chosen_plane(path):
    assert trajectory(path, "--through", "center@0,0,1", "--mark", "1@2") == 0
    columns = table(path)
    ends = columns[columns["iteration"] == 5]
    np.testing.assert_allclose(ends["off_plane"], 0, atol=1e-5)
    assert columns["off_plane"].max() > 0.1
    assert columns["center_off_plane"][0] == pytest.approx(0, abs=1e-5)


def test_nan_losses_are_kept_and_reported(path, capsys):
    assert trajectory(path, "--loss", f"{MODULE}:diverging", "--surface", 5, "--losses") == 0
    with h5py.File(path / "figures" / "trajectory.h5") as file:
        lost = int(np.isnan(file["surface/loss"][()]).sum())
    columns = table(path)
    printed = capsys.readouterr().out
    along = int(np.isnan(columns["loss"]).sum() + np.isnan(columns["plane_loss"]).sum())
    for where, count in (("on the plane", lost), ("along the tracks", along)):
        assert (f"loss {where}: not finite at {count} points" in printed) == (count > 0)
    assert lost


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--through", "0,1"), "--through: expected three states, .*, found 0,1"),
        (("--through", "0,1,0"), "0: expected another state than 0, found the same"),
        (("--mark", "best"), "state: expected center.*, found 'best'"),
        (("--surface", "1"), "--surface: expected 2 points or more, found 1"),
        (("--source", "sketches", "--losses"), "--source sketches excludes --surface, --losses and --through"),
        (("--surface", "4", "--make-model", f"{MODULE}:other_classifier"), "model: expected the run's parameters"),
        (("--losses", "--make-batches", f"{MODULE}:nothing"), "data: expected at least one sample, found none"),
    ],
)
def test_bad_input(path, capsys, words, line):
    assert trajectory(path, *words) == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert re.search(line, printed)


def test_a_run_without_states(tmp_path, capsys):
    path = write_run(tmp_path / "run", snapshots=False)
    assert trajectory(path) == 2
    assert "expected 3 sketches of the samples or more to lay a plane through, found 0" in capsys.readouterr().err
    assert trajectory(path, "--surface", 5) == 2
    assert "expected 3 snapshots of the sample or more to lay a plane through, found 0" in capsys.readouterr().err
