"""Snapshots in parts: rows that a part lacks, and damaged ones."""

import shutil

import h5py
import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.trajectory import Run, Snapshots, TrajectoryWriter
from tests.helpers.logs import attributes

LAYOUT = [("a.weight", (3, 2)), ("a.bias", (3,))]
# The first rank has two rows of each parameter, the second one.
PARTS = [[("a.weight", (2, 2)), ("a.bias", (2,))], [("a.weight", (1, 2)), ("a.bias", (1,))]]
PLACES = [[0, 1, 2, 3, 6, 7], [4, 5, 8]]


def write(folder, iterations=((0, 2, 4, 4), (0, 2, 4, 4))):
    """A log of one chain of two ranks; element i of the snapshot of row r is 10 r + i."""
    with TrajectoryWriter(folder, 0, LAYOUT, attributes()) as writer:
        writer.step(iteration=0, total_iteration=0, loss=1.0)
    snapshots = Snapshots(states=("sample",))
    for index, (layout, places, kept) in enumerate(zip(PARTS, PLACES, iterations, strict=True)):
        with TrajectoryWriter(folder, 0, layout, attributes(), shard=index, snapshots=snapshots) as writer:
            for row, iteration in enumerate(kept):
                writer.snapshot("sample", np.array(places) + 10.0 * row, iteration)


def test_parts_are_put_together_by_iteration(tmp_path):
    write(tmp_path)
    for path in (tmp_path / "rank-0000.h5", tmp_path):
        if path.is_dir():
            (path / "config.json").write_text(attributes()["config"])
        run = Run(path)
        assert run.snapshots(0)["iteration"].tolist() == [0, 2, 4, 4]
        for row in range(4):
            np.testing.assert_array_equal(run.snapshot(0, row), 10.0 * row + np.arange(9))


def test_rows_that_a_part_lacks_are_left_out(tmp_path):
    write(tmp_path, ((0, 2, 4, 4), (0, 4)))
    run = Run(tmp_path / "rank-0000.h5")
    assert run.snapshots(0)["iteration"].tolist() == [0, 4]
    assert run.log(0).rows("snapshot/sample") == 2
    np.testing.assert_array_equal(run.snapshot(0, 0), np.arange(9))
    # The first rank's row 2 and the second one's row 1.
    np.testing.assert_array_equal(run.snapshot(0, -1)[PLACES[0]], 20.0 + np.array(PLACES[0]))
    np.testing.assert_array_equal(run.snapshot(0, -1)[PLACES[1]], 10.0 + np.array(PLACES[1]))


def test_damaged_parts_are_left_out_if_asked(tmp_path):
    write(tmp_path)
    with h5py.File(tmp_path / "rank-0000-shard-0001.h5", "r+") as file:
        file["snapshot/sample/values"][2, 0] += 1
    with pytest.raises(InputError, match=r"rank-0000-shard-0001\.h5: snapshot/sample: expected whole rows"):
        Run(tmp_path / "rank-0000.h5").snapshot(0, 2)
    run = Run(tmp_path / "rank-0000.h5", partial=True)
    assert run.log(0).whole("snapshot/sample") == [0, 1, 3]
    assert any("shard-0001" in text for text in run.problems)
    np.testing.assert_array_equal(run.snapshot(0, 3), 30.0 + np.arange(9))


def test_parts_that_are_not_the_whole_are_named(tmp_path):
    write(tmp_path)
    shutil.copy(tmp_path / "rank-0000-shard-0001.h5", tmp_path / "rank-0000-shard-0002.h5")
    with pytest.raises(InputError, match=r"expected parts of a.weight that make up \(3, 2\), found \(2, 2\), \(1, 2\)"):
        Run(tmp_path / "rank-0000.h5")
