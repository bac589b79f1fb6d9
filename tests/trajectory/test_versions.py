"""Files of older schema versions can be read."""

import h5py
import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.trajectory import Run, backlog, merge, schema, verify
from tests.helpers.logs import LAYOUT, make_run, make_version_1


def check(run):
    steps, exchanges = run.steps(0), run.exchanges(0)
    np.testing.assert_array_equal(steps["loss"], np.arange(10, dtype=np.float32) / 2)
    np.testing.assert_array_equal(exchanges["version_added"], np.arange(10) + 2)
    # Columns that version 1 lacks.
    np.testing.assert_array_equal(exchanges["delay"], -1)
    assert exchanges["delay"].dtype == np.int64
    assert np.isnan(exchanges["blocked"]).all()
    result = run.result(0)
    assert (result["steps"], result["center_test_error"]) == (10, 1.5)
    assert np.isnan(result["seconds"])
    assert [(name, shape) for name, shape, _ in run.layout] == LAYOUT
    assert run.sketcher is None
    assert verify(run) == []


def test_version_1(tmp_path):
    make_version_1(tmp_path)
    run = Run(tmp_path)
    assert run.logs[0].version == 1
    assert run.logs[0].tables == ["step", "exchange"]
    assert run.logs[0].counts() == {"step": 10, "exchange": 10}
    check(run)


def test_version_1_merged_is_the_present_version(tmp_path):
    make_version_1(tmp_path)
    merge(Run(tmp_path), tmp_path / "out.h5")
    run = Run(tmp_path / "out.h5")
    assert run.logs[0].version == schema.VERSION
    check(run)


def test_version_2_has_no_perplexity(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # that version's writer: the same tables without later columns
        older = {name: tuple(c for c in columns if c.since <= 2) for name, columns in schema.TABLES.items()}
        patch.setattr(schema, "VERSION", 2)
        patch.setattr(schema, "RESULT", older["result"])
        patch.setitem(schema.TABLES, "result", older["result"])
        patch.setitem(backlog._COLUMNS, "result", backlog._columns(older["result"]))
        path = make_run(tmp_path / "run", ranks=2, result={"steps": 10, "center_test_error": 1.5})
    with h5py.File(path / "rank-0000.h5") as file:
        assert "center_test_perplexity" not in file["result"]
    merge(Run(path), tmp_path / "merged.h5")
    for run, version in ((Run(path), 2), (Run(tmp_path / "merged.h5"), schema.VERSION)):
        assert run.logs[0].version == version
        assert (run.result(1)["steps"], run.result(1)["center_test_error"]) == (10, 1.5)
        assert np.isnan(run.result(1)["center_test_perplexity"])
        assert verify(run) == []


def test_a_file_with_check_sums_cannot_claim_version_1(tmp_path):
    path = make_run(tmp_path / "run", ranks=1)
    with h5py.File(path / "rank-0000.h5", "r+", libver="latest") as file:
        file.attrs["schema_version"] = 1
    with pytest.raises(InputError, match="expected schema version 2 or later in a file with check sums, found 1"):
        Run(path)
