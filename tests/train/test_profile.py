"""`--profile`: its syntax, and removal of old traces."""

import pytest
import torch

from lsam_hpc import InputError
from lsam_hpc.rundir.prepare import prepare
from lsam_hpc.train.config import parse
from lsam_hpc.train.profile import Profile, profiled


def test_good_steps():
    assert profiled("10:20") == range(10, 20)
    assert not profiled("none")


@pytest.mark.parametrize("text", ["20:10", "10", "10:10", "a:b", "-1:3", "1:2:3", ""])
def test_bad_steps(text):
    with pytest.raises(InputError) as caught:
        parse([f"--profile={text}"])
    assert str(caught.value) == f"--profile: expected FIRST:END, steps as in 10:20, or none, found {text!r}"


def test_overwriting_a_run_removes_its_traces(tmp_path):
    (tmp_path / "profile").mkdir()
    for name in ("rank-0000.json.gz", "part-rank-0001.json.gz", "mine.json.gz"):
        (tmp_path / "profile" / name).touch()
    with pytest.raises(InputError, match="expected a directory without a run"):
        prepare(tmp_path, {}, 0)
    prepare(tmp_path, {}, 0, overwrite=True)
    assert [file.name for file in (tmp_path / "profile").iterdir()] == ["mine.json.gz"]


def test_a_trace_that_cannot_be_written_is_a_warning(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("KINETO_LOG_LEVEL", "99")
    (tmp_path / "profile").touch()  # a file where the folder should be
    profile = Profile(range(1, 2), tmp_path / "profile" / "rank-0000.json.gz", torch.device("cpu"))
    for step in (1, 2):
        profile.before(step)
    profile.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("rank-0000.json.gz: trace not written, training continues: File exists")
