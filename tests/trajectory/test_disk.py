"""Training continues when the disk is full, frozen or slow."""

import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from lsam_hpc.trajectory import Run, Snapshots, TrajectoryWriter, verify
from lsam_hpc.trajectory.backlog import Backlog
from tests.helpers.logs import LAYOUT, assert_rows, attributes, exchange_row, step_row, write_rows
from tests.helpers.mpis import ROOT

SIZE = 2 * 2**20


def privately(script, *words):
    """Run a shell script in its own mount namespace."""
    return subprocess.run(
        ["unshare", "-m", "sh", "-ec", script, "sh", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
    )


def can(script, *words):
    return shutil.which("unshare") is not None and privately(script, *words).returncode == 0


def check_full(report, path, reason):
    assert 0 < report["flushed"] < 60_000
    assert len(report["warnings"]) == 1
    assert report["warnings"][0].endswith(f"rank-0000.h5: the log stops here and training continues: {reason}")
    run = Run(path)
    count = assert_rows(run, 0, least=report["flushed"])
    assert count < 60_000
    assert run.result(0) is None
    # Steps and exchanges after the last flush, and the result.
    assert report["dropped"]["rows"] >= 2 * (60_000 - report["flushed"])


def test_a_file_size_limit(tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (SIZE, SIZE))

    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.bad_disk", str(tmp_path), "full"],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=ROOT,
        preexec_fn=limit,
    )
    assert done.returncode == 0, done.stderr
    check_full(json.loads(done.stdout), tmp_path / "rank-0000.h5", "File too large")


def test_a_full_disk(tmp_path):
    small = f"mount -t tmpfs -o size={SIZE} none $1"
    if not can(small, tmp_path):
        pytest.skip("no file system can be mounted here: that needs root")
    (tmp_path / "disk").mkdir()
    done = privately(
        f'{small}\n"$2" -m tests.helpers.bad_disk $1 full\ncp $1/rank-0000.h5 $3',
        tmp_path / "disk",
        sys.executable,
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    check_full(json.loads(done.stdout), tmp_path / "rank-0000.h5", "No space left on device")


def test_the_log_goes_on_whenever_the_disk_was_full(tmp_path):
    # HDF5 reads parts of the file again when it closes it, so that closing an abandoned file may fail.
    mount = "mount -t tmpfs -o size=8m none $1"
    if not can(mount, tmp_path):
        pytest.skip("no file system can be mounted here: that needs root")
    done = privately(f'{mount}\n"$2" -m tests.helpers.bad_disk $1 refilled', tmp_path, sys.executable)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"wrong": []}


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("freed", "No space left on device"), ("reserved", "the disk has less than 4.0 MB left for checkpoints")],
)
def test_the_log_goes_on_when_there_is_room(tmp_path, kind, reason):
    mount = "mount -t tmpfs -o size=16m none $1"
    if not can(mount, tmp_path):
        pytest.skip("no file system can be mounted here: that needs root")
    (tmp_path / "disk").mkdir()
    done = privately(
        f'{mount}\n"$2" -m tests.helpers.bad_disk $1 {kind}\ncp $1/* $3', tmp_path / "disk", sys.executable, tmp_path
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    path = tmp_path / "rank-0000.h5"
    assert report["warnings"] == [
        f"{tmp_path}/disk/rank-0000.h5: the log stops here and training continues: {reason}",
        f"{tmp_path}/disk/rank-0000.h5: the log goes on",
    ]
    if kind == "reserved":
        assert report["free"] > 1_900_000  # the log took next to nothing of it
    run = Run(path)
    assert verify(run) == []
    steps = run.steps(0)["iteration"]
    np.testing.assert_array_equal(steps[:1000], np.arange(1000))
    np.testing.assert_array_equal(steps[-1000:], np.arange(20_000, 21_000))
    assert (np.diff(steps) > 0).all()
    assert run.result(0)["steps"] == 21_000
    counted = run.logs[0].table("dropped")
    assert {name: counted[name][-1] for name in report["dropped"]} == report["dropped"]
    lost = 2 * 21_000 - len(steps) - len(run.exchanges(0)["iteration"])
    assert lost > 0
    # After an error of the disk the rows in HDF5's memory may have reached the disk or not.
    assert report["dropped"]["rows"] == lost if kind == "reserved" else report["dropped"]["rows"] >= lost
    assert list(tmp_path.glob("*.part")) == []


def test_the_log_stops_at_its_limit_except_for_snapshots_and_the_result(tmp_path):
    writer = TrajectoryWriter(tmp_path, 0, LAYOUT, attributes(), snapshots=Snapshots(), limit_bytes=200_000)

    def write():
        for row in range(0, 20_000, 100):
            write_rows(writer, row, row + 100)
            writer.flush()
        writer.close({"steps": 20_000})

    with pytest.warns(UserWarning, match=r"the log stops here and .*: it has its largest size of 0\.2 MB") as caught:
        write()
    assert len(caught) == 1
    run = Run(tmp_path / "rank-0000.h5")
    assert verify(run) == []
    assert run.result(0)["steps"] == 20_000
    steps = len(run.steps(0)["iteration"])
    assert 500 < steps < 2000
    assert writer.dropped == {"rows": 2 * (20_000 - steps), "values": 0, "states": 0}
    assert len(run.logs[0].table("snapshot/sample")["iteration"]) == 200


def test_a_frozen_disk(tmp_path):
    """No call of the writer waits for a frozen file system: what does not fit into memory is dropped and counted."""
    frozen = "mount -o loop $1/image $1/disk"
    (tmp_path / "disk").mkdir()
    with open(tmp_path / "image", "wb") as image:
        image.truncate(2**26)
    tools = all(map(shutil.which, ("mkfs.ext4", "fsfreeze", "losetup")))
    if not tools or not can(f"mkfs.ext4 -q $1/image; {frozen}; umount $1/disk", tmp_path):
        pytest.skip("no file system can be made, mounted and frozen here: that needs root")
    done = privately(
        f'{frozen}\n"$2" -m tests.helpers.bad_disk $1/disk frozen || status=$?\n'
        "cp $1/disk/rank-0000.h5 $1\numount $1/disk\nexit ${status:-0}",
        tmp_path,
        sys.executable,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    # The disk was frozen for two seconds: a call that waited for it would take longer than one.
    assert report["longest"] < 1
    assert len(report["warnings"]) == 1
    assert "the disk is too slow: parts of the log are left out, counted in /dropped" in report["warnings"][0]
    dropped = report["dropped"]
    assert min(dropped.values()) > 0
    assert dropped == report["before"]  # nothing is dropped after the disk is thawed
    run = Run(tmp_path / "rank-0000.h5")
    counted = run.logs[0].table("dropped")
    assert {name: counted[name][-1] for name in dropped} == dropped
    steps, exchanges = run.steps(0), run.exchanges(0)
    rows = [table["iteration"] for table in (steps, exchanges)]
    assert sum(report["rows"] - len(iterations) for iterations in rows) == dropped["rows"]
    np.testing.assert_array_equal(rows[0][-100:], np.arange(report["rows"] - 100, report["rows"]))
    # The written values are right, and optional values were dropped first.
    np.testing.assert_array_equal(steps["loss"], np.float32(rows[0] / 2))
    lost = np.isnan(steps["lr"])
    np.testing.assert_array_equal(steps["lr"][~lost], rows[0][~lost])
    optional = {"step": 5, "exchange": 6}
    missing = lost.sum() * optional["step"] + np.isnan(exchanges["blocked"]).sum() * optional["exchange"]
    assert dropped["values"] >= missing > 0


def test_states_and_optional_values_are_dropped_before_rows():
    backlog = Backlog(20_000)
    state = {"iteration": 0, "time": 0, "version": 0, "values": np.zeros(1000, np.float32)}
    backlog.put("snapshot/sample", state)
    assert backlog.dropped == {"rows": 0, "values": 0, "states": 0}
    backlog.put("sketch/sample", state)
    backlog.put("sketch/sample", state)  # more than half
    assert backlog.dropped == {"rows": 0, "values": 0, "states": 1}
    while not backlog.dropped["values"]:
        backlog.put("step", {"time": 0, **step_row(1)})
    assert backlog.dropped == {"rows": 0, "values": 5, "states": 1}
    while not backlog.dropped["rows"]:
        backlog.put("exchange", {**{k: v for k, v in exchange_row(1).items() if k != "began"}, "time": 0})
    rows = backlog.take("exchange", everything=True)
    assert rows[-1] == (1, 0, None, 1, 3, 2, None, None, None, 1, None, None)
    assert backlog.dropped["values"] == 5 + 6 * (len(rows) + 1)
    # Memory is free again after `release`, not already after `take`.
    backlog.put("exchange", {**{k: v for k, v in exchange_row(1).items() if k != "began"}, "time": 0})
    assert backlog.dropped["rows"] == 2
    backlog.release(rows)
    backlog.put("exchange", {**{k: v for k, v in exchange_row(1).items() if k != "began"}, "time": 0})
    assert backlog.dropped["rows"] == 2


def test_a_snapshot_larger_than_the_limit_is_kept_alone():
    backlog = Backlog(1000)
    state = {"iteration": 0, "time": 0, "values": np.zeros(1000, np.float32)}
    backlog.put("snapshot/sample", state)
    backlog.put("snapshot/sample", state)
    backlog.put("snapshot/center", state)
    assert backlog.dropped["states"] == 1
    assert [len(backlog.take(f"snapshot/{s}", everything=True)) for s in ("sample", "center")] == [1, 1]


def test_the_thread_wakes_for_full_chunks_only():
    backlog = Backlog(10**6)
    backlog.full_at["step"] = 3
    row = {"time": 0, **step_row(1)}
    for _ in range(2):
        backlog.put("step", row)
    assert backlog.wait(0) == (0, False)
    assert backlog.take("step", everything=False) == []
    for _ in range(3):
        backlog.put("step", row)
    backlog.wait(60)
    assert len(backlog.take("step", everything=False)) == 3
    assert len(backlog.take("step", everything=True)) == 2


def test_locking_is_passed_to_hdf5(tmp_path):
    code = (
        "import sys, fcntl; from pathlib import Path; from tests.helpers.logs import *\n"
        "writer = TrajectoryWriter(Path(sys.argv[1]), 0, LAYOUT, attributes(), locking=sys.argv[2] == 'True')\n"
        "writer.close()"
    )
    calls = {}
    if shutil.which("strace") is None:
        pytest.skip("no strace here")
    for locking in ("True", "False"):
        out = tmp_path / locking
        out.mkdir()
        subprocess.run(
            ["strace", "-f", "-e", "trace=flock", "-o", out / "calls", sys.executable, "-c", code, str(out), locking],
            check=True,
            timeout=60,
            cwd=ROOT,
            env={**os.environ, "HDF5_USE_FILE_LOCKING": ""},
        )
        calls[locking] = (out / "calls").read_text().count("LOCK_EX")
    assert calls["True"] > 0
    assert calls["False"] == 0
