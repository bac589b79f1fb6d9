"""`lsam inspect`."""

import json
import os
import resource

import h5py
import numpy as np
import pytest

from lsam_hpc.cli import main
from lsam_hpc.trajectory import Run, TrajectoryWriter, merge, schema
from lsam_hpc.trajectory.store import Table
from tests.helpers.logs import LAYOUT, attributes, leave_unclosed, make_run

RESULT = {"steps": 10, "center_train_loss": 0.25, "center_test_error": 1.5, "sample_test_error": 2.25}


def inspect(capsys, *words):
    code = main(["inspect", *map(str, words)])
    return code, capsys.readouterr().out


def test_a_summary(tmp_path, capsys):
    path = make_run(tmp_path / "run", result=RESULT)
    code, out = inspect(capsys, path)
    lines = out.splitlines()
    assert code == 0
    assert "2 ranks, 2026-01-01T00:00:00+00:00, launched by none" in lines[0]
    assert lines[3] == "options  data digits, rho 0.1"
    assert lines[4] == "model    10 parameters in 3 tensors"
    assert lines[5] == "states   sketches: none; snapshots: none"
    assert lines[6] == "center   train loss 0.2500, test error 1.50 %"
    assert lines[8].split()[:5] == ["rank", "host", "time", "s", "steps"]
    row = lines[10].split()
    assert row[:2] + row[3:4] + row[5:] == [
        "1",
        "here",
        "10",
        "4.5000",
        "10",
        "0",
        "2.00",
        "2",
        "9",
        "0",
        "0",
        "0",
        "2.25",
    ]


def test_states_and_what_was_dropped(tmp_path, capsys):
    path = make_run(tmp_path / "run", rows=101, states=True)
    with h5py.File(path / "rank-0001.h5", "r+", libver="latest") as file:
        del file["dropped"]
        Table(file, "dropped", schema.DROPPED, {}).append([(1.0, 1, 2, 3), (2.0, 10, 200, 3000)])
    code, out = inspect(capsys, path)
    lines = out.splitlines()
    assert code == 0
    assert lines[5] == "states   sketches: 22 of the sample; snapshots: 4 of the sample"
    assert (
        lines[7]
        == "dropped  10 rows, 200 optional values, 3,000 sketches and snapshots: the disk was slower than the log"
    )
    assert [line.split()[-4:] for line in lines[10:]] == [["11", "2", "0", "-"], ["11", "2", "3210", "-"]]
    summary = json.loads(inspect(capsys, path, "--json")[1])
    assert summary["ranks"][1]["dropped"] == {"rows": 10, "values": 200, "states": 3000}
    assert summary["ranks"][1]["sketches"] == {"sample": 11, "center": 0}
    assert summary["ranks"][0]["snapshots"] == {"sample": 2, "center": 0}


def test_a_file_does_not_move_the_cursor(tmp_path, capsys):
    with TrajectoryWriter(tmp_path, 0, LAYOUT, attributes(host="\x1b[2Jaway\n", launcher="\x1b]0;title\x07")) as writer:
        pass
    code, out = inspect(capsys, writer.path)
    assert code == 0
    assert "?[2Jaway?" in out
    assert all(line.isprintable() for line in out.splitlines())


def test_json_output(tmp_path, capsys):
    path = make_run(tmp_path / "run", result=RESULT)
    code, out = inspect(capsys, path, "--json")
    summary = json.loads(out)
    assert code == 0
    assert summary["ended"] is True
    assert summary["center"] == {"train_loss": 0.25, "test_error": 1.5, "test_perplexity": None}
    assert summary["config"] == {"data": "digits", "rho": 0.1}
    assert [rank["steps"] for rank in summary["ranks"]] == [10, 10]
    assert summary["ranks"][1]["loss"] == 4.5
    assert summary["ranks"][1]["result"]["seconds"] is None
    assert summary["problems"] == []


def test_unknown_values_are_dashes(tmp_path, capsys):
    with TrajectoryWriter(tmp_path, 0, LAYOUT, attributes()) as writer:
        writer.step(iteration=0, total_iteration=0, loss=np.nan)
    code, out = inspect(capsys, writer.path)
    assert code == 0
    assert "the run has not ended, or was stopped" in out
    assert out.splitlines()[-1].split()[3:] == ["1", "-", "-", "0", "0", "-", "-", "-", "0", "0", "0", "-"]


@pytest.mark.parametrize(
    ("finished", "text", "states"),
    [
        (2, "the run has ended; it logged no test error of the center", ["ended", "ended"]),
        (1, "1 of 2 ranks have ended", ["ended", "running"]),
        (0, "the run has not ended, or was stopped", ["running", "running"]),
    ],
)
def test_inspect_monitor_and_report_agree_on_the_end_of_a_horovod_script(tmp_path, capsys, finished, text, states):
    # `lsam_hpc.horovod` logs a result of counts; only `lsam train` measures errors.
    path = make_run(tmp_path / "run", result={"steps": 10, "exchanges": 2})
    for rank in range(finished, 2):
        (path / f"rank-{rank:04d}.h5").unlink()
        leave_unclosed(tmp_path / "open", rank=rank, ranks=2).rename(path / f"rank-{rank:04d}.h5")
    code, out = inspect(capsys, path)
    assert code == 0
    assert f"center   {text}" in out.splitlines()
    assert json.loads(inspect(capsys, path, "--json")[1])["ended"] is (finished == 2)
    assert main(["monitor", str(path), "--once"]) == 0
    shown = capsys.readouterr().out
    assert [line.split()[-1] for line in shown.splitlines() if " here " in line] == states
    assert ("job: finished" in shown) == (finished == 2)
    assert main(["report", str(path)]) == 0
    assert f"; {text}</dd>" in (path / "report.html").read_text()


def test_any_kind_of_run(tmp_path, capsys):
    path = make_run(tmp_path / "run")
    merge(Run(path), tmp_path / "out.h5")
    for target in (path, path / "rank-0001.h5", tmp_path / "out.h5", leave_unclosed(tmp_path / "killed")):
        code, out = inspect(capsys, target, "--verify")
        assert code == 0, out
        assert out.endswith("\n\nverified: every row is whole and consistent\n")


def damage(path):
    with h5py.File(path, "r+", libver="latest") as file:
        file["step/loss"][3] = 77


def test_damage(tmp_path, capsys):
    path = make_run(tmp_path / "run")
    damage(path / "rank-0001.h5")
    assert main(["inspect", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"lsam inspect: {path}/rank-0001.h5: step: expected whole rows, found 1 damaged from row 3 on; "
        "--partial or Run(path, partial=True) reads the others\n"
    )
    line = f"{path}/rank-0001.h5: step: expected whole rows, found 1 damaged from row 3 on"
    code, out = inspect(capsys, path, "--partial")
    assert code == 0
    assert out.splitlines()[10].split()[3] == "9"
    assert out.splitlines()[-1] == line
    code, out = inspect(capsys, path, "--verify")
    assert code == 1
    assert line in out
    code, out = inspect(capsys, path, "--verify", "--json")
    assert code == 1
    assert line in json.loads(out)["problems"]


def test_a_rank_that_is_missing(tmp_path, capsys):
    path = make_run(tmp_path / "run")
    (path / "rank-0000.h5").unlink()
    assert main(["inspect", str(path)]) == 2
    assert "found none for rank 0" in capsys.readouterr().err
    code, out = inspect(capsys, path, "--verify")
    assert code == 1
    assert out.splitlines()[-1] == f"{path}: expected the logs of 2 ranks, found none for rank 0"


def test_a_table_that_cannot_be_read(tmp_path, capsys):
    path = make_run(tmp_path / "run")
    with h5py.File(path / "rank-0000.h5", "r+", libver="latest") as file:
        del file["step"]
    code, out = inspect(capsys, path, "--verify")
    assert code == 1
    assert out == f"{path}/rank-0000.h5: expected a table step, found none\n"


def test_many_ranks_need_few_open_files(tmp_path, capsys):
    path = make_run(tmp_path / "run", ranks=100, rows=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
    try:
        code, out = inspect(capsys, path, "--verify")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert code == 0
    assert len(out.splitlines()) == 9 + 100 + 2
