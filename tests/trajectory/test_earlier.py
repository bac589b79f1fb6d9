"""The log of a resumed run: the earlier attempt's rows up to the checkpoint, then the new rows."""

import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.trajectory import CountSketch, Earlier, RankLog, Run, Snapshots, TrajectoryWriter, verify
from tests.helpers.logs import LAYOUT, SKETCH, VECTOR, assert_rows, attributes, leave_unclosed, make_run, write_rows


def resumed(path, steps, **more):
    options = {"sketch": SKETCH, "snapshots": Snapshots(), **more}
    earlier = Earlier(RankLog(path / "rank-0000.h5", partial=True), steps)
    return TrajectoryWriter(path, 0, LAYOUT, attributes(), earlier=earlier, **options)


@pytest.mark.parametrize("steps", [0, 100, 101, 230])
def test_rows_up_to_the_checkpoint_are_copied(tmp_path, steps):
    leave_unclosed(tmp_path / "run", 230, sketch=SKETCH, snapshots=Snapshots())
    with resumed(tmp_path / "run", steps) as writer:
        assert len(Run(writer.path).steps(0)["iteration"]) == steps
        exchanges = Run(writer.path).exchanges(0)["iteration"]
        # The exchange after the last step of the checkpoint belongs to it.
        np.testing.assert_array_equal(exchanges, np.arange(min(steps + 1, 230)))
        np.testing.assert_array_equal(Run(writer.path).snapshots(0)["iteration"], np.arange(0, steps + 1, 100))
    assert verify(Run(writer.path)) == []


def test_two_attempts_make_the_log_of_one(tmp_path):
    path = tmp_path / "run"
    leave_unclosed(path, 230, sketch=SKETCH, snapshots=Snapshots(dtype="bfloat16"))
    with resumed(path, 199, snapshots=Snapshots(dtype="float32", compression="lzf")) as writer:
        # The helper's rows count from 0: the exchange of iteration 199 was copied already, its step was not.
        for i in range(199, 500):
            if i > 199:
                write_rows(writer, i, i + 1)
            else:
                row = {"iteration": 199, "total_iteration": 398, "loss": 99.5}
                writer.step(**row, grad_norm=199, perturbation_norm=199, center_distance=199, lr=199, rho=199)
    run = Run(writer.path)
    assert_rows(run, 0, 500, states=False)
    np.testing.assert_array_equal(run.sketch(0)["iteration"], np.arange(0, 500, 10))
    np.testing.assert_array_equal(run.sketch(0)["values"][-1], SKETCH(490 * VECTOR).sum(0))
    np.testing.assert_array_equal(run.snapshot(0, -1), 400 * VECTOR)
    assert verify(run) == []


def test_dropped_counts_are_copied_and_the_result_is_not(tmp_path):
    path = make_run(tmp_path / "run", ranks=1, rows=50, result={"steps": 50.0}, states=True)
    with resumed(path, 50) as writer:
        writer.flush()
        assert Run(path).result(0) is None  # the run is going on
        assert writer.dropped == {"rows": 0, "values": 0, "states": 0}
    (path / "rank-0000.h5").unlink()
    with TrajectoryWriter(path, 0, LAYOUT, attributes(), queue_bytes=2**12) as writer:
        with pytest.warns(UserWarning, match="the disk is too slow"):
            write_rows(writer, 0, 2000)
        writer.flush()
        dropped = writer.dropped
    assert dropped["rows"] > 0
    with resumed(path, 2000, sketch=None, snapshots=None) as writer:
        assert writer.dropped == dropped
        with pytest.warns(UserWarning, match="the disk is too slow"):
            writer.step(iteration=2000, total_iteration=4000, loss=1.0)
    assert verify(Run(path)) == []


def test_an_earlier_log_with_other_sketches_or_layout_is_refused(tmp_path):
    path = make_run(tmp_path / "run", ranks=1, states=True)
    before = (path / "rank-0000.h5").read_bytes()
    with pytest.raises(InputError, match="expected sketches made with the present options, found others"):
        resumed(path, 10, sketch=CountSketch(10, buckets=SKETCH.buckets, seed=SKETCH.seed + 1))
    earlier = Earlier(RankLog(path / "rank-0000.h5"), 10)
    with pytest.raises(InputError, match="expected the layout of this model, found another"):
        TrajectoryWriter(path, 0, [("w", (10,))], attributes(), earlier=earlier)
    assert (path / "rank-0000.h5").read_bytes() == before
