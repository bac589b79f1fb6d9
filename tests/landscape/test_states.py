"""States by name."""

import math

import numpy as np
import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.landscape.states import state
from lsam_hpc.trajectory import Run, Snapshots, TrajectoryWriter
from tests.helpers.logs import LAYOUT, VECTOR, attributes, make_run


@pytest.fixture
def run(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text("{}")
    for rank in range(2):
        with TrajectoryWriter(path, rank, LAYOUT, attributes(2), snapshots=Snapshots()) as writer:
            for i in range(4):
                writer.snapshot("sample", (100 * rank + i) * VECTOR, i)
                writer.snapshot("center", 1000 * i * VECTOR, i)
    return Run(path)


def test_snapshots_by_name(run):
    np.testing.assert_array_equal(state(run, "center"), 3000 * VECTOR)
    np.testing.assert_array_equal(state(run, "center@0"), 0 * VECTOR)
    np.testing.assert_array_equal(state(run, "1"), 103 * VECTOR)
    np.testing.assert_array_equal(state(run, "1@-2"), 102 * VECTOR)


def test_a_file(run, tmp_path):
    tensors = {name: torch.randn(shape) for name, shape, _ in run.layout}
    torch.save({**tensors, "running_mean": torch.ones(3)}, tmp_path / "m.pt")
    vector = state(run, str(tmp_path / "m.pt"))
    for name, shape, at in run.layout:
        np.testing.assert_array_equal(vector[at : at + math.prod(shape)], tensors[name].reshape(-1))


def test_the_center_of_a_run_without_snapshots(tmp_path):
    path = make_run(tmp_path / "bare")
    run = Run(path)
    with pytest.raises(InputError, match=r"of the center of rank 0, or checkpoints/center\.pt, found neither: train"):
        state(run, "center")
    (path / "checkpoints").mkdir()
    tensors = {name: torch.randn(shape) for name, shape, _ in run.layout}
    torch.save({**tensors, "running_mean": torch.ones(3)}, path / "checkpoints" / "center.pt")
    expected = torch.cat([t.reshape(-1) for t in tensors.values()])
    np.testing.assert_array_equal(state(run, "center"), expected)
    np.testing.assert_array_equal(state(Run(path / "rank-0001.h5"), "center"), expected)
    for name in ("center@0", "center@-1", "0"):  # what only snapshots have
        with pytest.raises(InputError, match=r"expected snapshots of the \w+ of rank 0, found none: train with"):
            state(run, name)


def test_snapshots_precede_a_checkpoint(run):
    folder = run.path / "checkpoints"
    folder.mkdir()
    torch.save({name: torch.zeros(shape) for name, shape, _ in run.layout}, folder / "center.pt")
    np.testing.assert_array_equal(state(run, "center"), 3000 * VECTOR)


class Code:
    def __reduce__(self):
        return (print, ("code ran",))


def test_bad_input(run, tmp_path, capsys):
    for name, message in (
        ("centre", r"state: expected center\[@I\], RANK\[@I\] or FILE.pt .*, found 'centre'"),
        ("7", "expected a rank of 0, 1, found 7"),
        ("1@99", "expected one of 4 snapshots of rank 1, found index 99"),
        (str(tmp_path / "none.pt"), "expected a file with a state_dict, found: No such file"),
    ):
        with pytest.raises(InputError, match=message):
            state(run, name)
    torch.save({"other": torch.ones(2)}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"other.pt: expected .* of shape .*, found none"):
        state(run, str(tmp_path / "other.pt"))
    torch.save(Code(), tmp_path / "code.pt")
    with pytest.raises(InputError, match=r"code.pt: expected a state_dict that torch.load"):
        state(run, str(tmp_path / "code.pt"))
    assert "code ran" not in capsys.readouterr().out
    bare = Run(make_run(tmp_path / "bare"))
    with pytest.raises(InputError, match="expected snapshots of the sample of rank 0, found none: train with"):
        state(bare, "0")
