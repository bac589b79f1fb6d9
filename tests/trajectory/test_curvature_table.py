"""The table of the curvature: only logs that measure it have one, and every reader knows it."""

import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.tools.inspect_run import summary, text
from lsam_hpc.trajectory import Earlier, RankLog, Run, TrajectoryWriter, index, merge, verify
from tests.helpers.logs import LAYOUT, attributes, step_row

STEPS = (0, 10, 20, 30)


def row(i):
    return {
        "iteration": i,
        "total_iteration": 2 * i,
        "eigenvalue": 1 + i / 10,
        "residual": i / 1000,
        "products": 5,
        "seconds": 0.5,
    }


def write(path, *, last=31, measured=STEPS, **more):
    with TrajectoryWriter(path, 0, LAYOUT, attributes(), curvature=True, **more) as writer:
        for i in range(last):
            if i in measured:
                writer.curvature(**row(i))
            writer.step(**step_row(i))
    return writer.path


def test_rows_are_read_back_merged_indexed_and_summarised(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text('{"data": "digits", "rho": 0.1}')
    write(path)
    run = Run(path)
    assert verify(run) == []
    merge(run, tmp_path / "merged.h5")
    index(run)
    for other in (run, Run(tmp_path / "merged.h5"), Run(path / "run.h5")):
        table = other.log(0).table("curvature")
        np.testing.assert_array_equal(table["iteration"], STEPS)
        np.testing.assert_array_equal(table["eigenvalue"], [1, 2, 3, 4])
        np.testing.assert_array_equal(table["residual"], [0, 0.01, 0.02, 0.03])
        assert (np.diff(table["time"]) >= 0).all()
    pytest.importorskip("pandas")
    assert run.frame("curvature")["eigenvalue"].tolist() == [1, 2, 3, 4]
    info = summary(run)
    assert info["ranks"][0]["curvature"] | {"share": None} == {
        "count": 4,
        "first": 1.0,
        "largest": 4.0,
        "last": 4.0,
        "share": None,
    }
    line = next(line for line in text(info).splitlines() if line.startswith("Hessian"))
    assert "largest eigenvalue 1 at first, 4 at most, 4 at last (mean of 1 chains): 4 measurements" in line


def test_a_resumed_log_keeps_the_rows_up_to_its_checkpoint(tmp_path):
    path = write(tmp_path)
    with TrajectoryWriter(
        tmp_path, 0, LAYOUT, attributes(), curvature=True, earlier=Earlier(RankLog(path), 20)
    ) as writer:
        writer.curvature(**row(30))
    # At step 20 it was measured before the checkpoint was written.
    assert RankLog(path).table("curvature")["iteration"].tolist() == [0, 10, 20, 30]
    with TrajectoryWriter(tmp_path, 0, LAYOUT, attributes(), earlier=Earlier(RankLog(path), 20)) as writer:
        pass  # an attempt that does not measure
    assert "curvature" not in RankLog(path).tables


def test_logs_without_it_have_no_table(tmp_path):
    with TrajectoryWriter(tmp_path, 0, LAYOUT, attributes()) as writer:
        with pytest.raises(InputError, match="curvature: expected a log that was made with a table of it, found none"):
            writer.curvature(**row(0))
        writer.step(**step_row(0))
    log = RankLog(writer.path)
    assert "curvature" not in log.tables
    merge(Run(writer.path), tmp_path / "merged.h5")
    assert "curvature" not in Run(tmp_path / "merged.h5").log(0).tables
    assert summary(Run(writer.path))["ranks"][0]["curvature"] is None


def test_verify_finds_wrong_rows(tmp_path):
    with TrajectoryWriter(tmp_path, 0, LAYOUT, attributes(), curvature=True) as writer:
        writer.step(**step_row(0))
        writer.curvature(**row(10))
        writer.curvature(**{**row(10), "eigenvalue": np.nan})
    errors = verify(Run(writer.path))
    assert [error.partition("curvature: ")[2].partition(":")[0] for error in errors] == ["iteration", "eigenvalue"]
