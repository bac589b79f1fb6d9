"""Tables as pandas and xarray objects."""

import sys

import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.trajectory import Run, TrajectoryWriter, schema
from tests.helpers.logs import LAYOUT, attributes, make_run, write_rows


@pytest.fixture
def run(tmp_path):
    path = make_run(tmp_path / "run", ranks=1)
    (path / "rank-0000.h5").unlink()
    for rank, rows in ((0, 10), (1, 4)):
        with TrajectoryWriter(path, rank, LAYOUT, attributes(2)) as writer:
            write_rows(writer, 0, rows)
    return Run(path)


def test_pandas(run):
    pytest.importorskip("pandas")
    frame = run.frame()
    assert list(frame.columns) == ["rank", *(c.name for c in schema.STEP)]
    assert frame.groupby("rank")["loss"].max().to_dict() == {0: 4.5, 1: 1.5}
    assert len(run.frame("exchange")) == 14
    assert len(run.frame("dropped")) == 0


def test_xarray(run):
    pytest.importorskip("xarray")
    steps = run.dataset()
    assert dict(steps.sizes) == {"rank": 2, "row": 10}
    np.testing.assert_array_equal(steps["loss"].sel(rank=0), np.arange(10) / 2)
    np.testing.assert_array_equal(steps["loss"].sel(rank=1)[:4], np.arange(4) / 2)
    assert np.isnan(steps["loss"].sel(rank=1)[4:]).all()
    assert (steps["iteration"].sel(rank=1)[4:] == -1).all()
    assert steps["time"].attrs["units"] == "s"


@pytest.mark.parametrize(("package", "read"), [("pandas", Run.frame), ("xarray", Run.dataset)])
def test_unknown_tables_and_missing_packages_are_named(run, package, read, monkeypatch):
    with pytest.raises(InputError, match=r"table: expected one of step, exchange, .*, found 'nothing'"):
        read(run, "nothing")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"expected the package {package}, found none"):
        read(run)
