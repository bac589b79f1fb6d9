"""`lsam merge`."""

import h5py
import pytest

from lsam_hpc import InputError
from lsam_hpc.tools.merge import main
from lsam_hpc.trajectory import Run
from tests.helpers.logs import assert_rows, make_run


def test_merge(tmp_path, capsys):
    path = make_run(tmp_path / "run", rows=101, states=True)
    out = tmp_path / "out.h5"
    assert main([str(path), str(out), "--compression", "lzf"]) == 0
    assert capsys.readouterr().out == f"{out}: 2 ranks\n"
    assert_rows(Run(out), 1, 101)
    with h5py.File(out) as file:
        assert file["rank-0000/snapshot/sample/values"].compression == "lzf"


def test_index(tmp_path, capsys):
    path = make_run(tmp_path / "run")
    assert main([str(path), "--index"]) == 0
    assert capsys.readouterr().out == f"{path}/run.h5: 2 ranks\n"
    with h5py.File(path / "run.h5") as file:
        assert file["step/loss"].shape == (2, 10)


def test_partial(tmp_path, capsys):
    path = make_run(tmp_path / "run")
    (path / "rank-0000.h5").unlink()
    with pytest.raises(InputError, match="found none for rank 0"):
        main([str(path), str(tmp_path / "out.h5")])
    assert main([str(path), str(tmp_path / "out.h5"), "--partial"]) == 0
    assert "found none for rank 0" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "found"), [((), "neither"), (("out.h5", "--index"), "both")])
def test_bad_usage(tmp_path, words, found):
    with pytest.raises(InputError, match=f"OUT: expected a file to write or --index, found {found}"):
        main([str(make_run(tmp_path / "run")), *words])
