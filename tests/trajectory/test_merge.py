"""Merged files and indices: one file for a run."""

import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.trajectory import Run, Snapshots, TrajectoryWriter, index, merge, schema, verify
from tests.helpers.logs import LAYOUT, SKETCH, VECTOR, assert_rows, attributes, leave_unclosed, make_run


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_file_is_the_run(tmp_path, dtype):
    path = make_run(tmp_path / "run", ranks=2, rows=1500, result={"steps": 1500}, states=True)
    with TrajectoryWriter(path, 2, LAYOUT, attributes(3), snapshots=Snapshots(dtype=dtype)) as writer:
        writer.snapshot("sample", VECTOR, 3)  # exact in bfloat16
    for rank in (0, 1):
        (path / f"rank-000{rank}.h5").unlink()
    made = make_run(tmp_path / "made", ranks=3, rows=1500, result={"steps": 1500}, states=True)
    for rank in (0, 1):
        shutil.copy(made / f"rank-000{rank}.h5", path)
    merge(Run(path), tmp_path / "out.h5")
    shutil.rmtree(path)
    run = Run(tmp_path / "out.h5")
    assert run.ranks == [0, 1, 2]
    for rank in (0, 1):
        assert assert_rows(run, rank, 1500) == 1500
        assert run.result(rank)["steps"] == 1500
    np.testing.assert_array_equal(run.snapshot(2, 0), VECTOR)
    assert run.logs[2].snapshot_dtype("sample") == dtype
    assert run.result(2) is None
    assert run.sketcher == SKETCH
    assert len(verify(run)) == 1  # rank 2 made no sketches: another map
    with h5py.File(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["rank-0001/step/loss"], np.arange(1500) / 2)


def test_a_merged_killed_run_opens_in_plain_h5py(tmp_path):
    path = leave_unclosed(tmp_path / "run", 700, sketch=SKETCH, snapshots=Snapshots())
    with pytest.raises(OSError, match="already open"):
        h5py.File(path)
    merge(Run(path), tmp_path / "out.h5")
    assert_rows(Run(tmp_path / "out.h5"), 0, 700)
    with h5py.File(tmp_path / "out.h5") as file:
        assert len(file["rank-0000/step/loss"]) == 700


def test_a_partial_run_is_merged_without_damaged_ranks(tmp_path):
    path = make_run(tmp_path / "run", ranks=3)
    (path / "rank-0001.h5").write_bytes(b"")
    with pytest.raises(InputError, match=r"rank-0001.h5: expected a readable HDF5 file"):
        merge(Run(path), tmp_path / "out.h5")
    merge(Run(path, partial=True), tmp_path / "out.h5")
    with pytest.raises(InputError, match=r"expected the logs of 3 ranks, found none for rank 1"):
        Run(tmp_path / "out.h5")
    assert Run(tmp_path / "out.h5", partial=True).ranks == [0, 2]


def test_an_index_refers_to_the_files_beside_it(tmp_path):
    path = make_run(tmp_path / "run", ranks=3, rows=130, states=True)
    (path / "rank-0002.h5").unlink()
    with TrajectoryWriter(path, 2, LAYOUT, attributes(3), sketch=SKETCH):
        pass  # a rank without rows
    out = index(Run(path))
    assert out == path / "run.h5"
    moved = path.rename(tmp_path / "moved")
    with h5py.File(moved / "run.h5") as file:
        loss, accepted, iteration = file["step/loss"][:], file["exchange/accepted"][:], file["step/iteration"][:]
        assert loss.shape == (3, 130)
        np.testing.assert_array_equal(loss[:2], np.tile(np.arange(130) / 2, (2, 1)))
        assert np.isnan(loss[2]).all()
        assert (iteration[2] == -1).all()
        assert accepted[:2].all()
        assert file["sketch/sample/values"].shape == (3, 13, 2, 16)
        np.testing.assert_array_equal(file["snapshot/sample/values"][1, 1], 100 * VECTOR)
        assert file["step/time"].attrs["unit"] == "s"
        assert file.attrs["format"] == schema.INDEX
    run = Run(moved / "run.h5")
    assert run.ranks == [0, 1, 2]
    assert_rows(run, 1, 130)
    (moved / "rank-0000.h5").unlink()
    with h5py.File(moved / "run.h5") as file:
        assert np.isnan(file["step/loss"][0]).all()
    with pytest.raises(InputError, match="found none for rank 0"):
        Run(moved / "run.h5")


def test_no_index_of_a_killed_run(tmp_path):
    path = leave_unclosed(tmp_path / "run")
    (path.parent / "config.json").write_text("{}")
    with pytest.raises(InputError, match="expected a file that its writer closed, found one that is open or was left"):
        index(Run(path.parent))
    assert not (path.parent / "run.h5").exists()
    with pytest.raises(InputError, match="expected a run directory to write an index into, found a file"):
        index(Run(path))


def test_nothing_is_overwritten(tmp_path):
    path = make_run(tmp_path / "run")
    (tmp_path / "out.h5").write_text("mine")
    with pytest.raises(InputError, match=r"out.h5: expected no such file, found one"):
        merge(Run(path), tmp_path / "out.h5")
    with pytest.raises(InputError, match=r"out.h5: expected a file that can be made, found: "):
        merge(Run(path), tmp_path / "nowhere" / "out.h5")
    assert (tmp_path / "out.h5").read_text() == "mine"
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("room", [2000, 20_000, 60_000, 500_000])
def test_a_disk_that_is_full(tmp_path, room):
    """A write fails: the tool prints one line and leaves no file, and HDF5 does not crash the program."""
    path = make_run(tmp_path / "run", rows=1500, states=True)
    code = (
        "import resource, sys; from lsam_hpc.cli import main; import lsam_hpc.tools.merge;"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room})); sys.exit(main(sys.argv[1:]))"
    )
    out = tmp_path / "out.h5"
    done = subprocess.run(
        [sys.executable, "-c", code, "merge", str(path), str(out)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"lsam merge: {out}: expected a file that can be made, found: File too large\n"
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_full_for_an_index(tmp_path):
    path = make_run(tmp_path / "run", rows=1500, states=True)
    code = (
        "import resource, sys; from lsam_hpc.cli import main; import lsam_hpc.tools.merge;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000)); sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "merge", str(path), "--index"], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert {file.name for file in path.iterdir()} == {"config.json", "rank-0000.h5", "rank-0001.h5"}
