"""One job at a time in a run directory."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from lsam_hpc import InputError
from lsam_hpc.rundir import lock as module
from lsam_hpc.rundir.holder import NAME, Progress, read_lock
from lsam_hpc.rundir.lock import RunLock
from lsam_hpc.rundir.processes import Process, lives, this_process
from tests.helpers.mpis import ROOT

ELSEWHERE = Process("another host", 1, "2")


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(module, "PATIENCE", 0.3)
    monkeypatch.setattr(module, "STALE", 1.0)
    monkeypatch.setattr(module, "HEARTBEAT", 0.05)
    monkeypatch.setattr(module, "_POLL", 0.01)


def make(run_dir, token="ours", ranks=None, rank=0, on_lost=None):
    return RunLock(run_dir, token, ranks or [this_process()], rank, on_lost or (lambda message: None))


def holder(run_dir):
    return json.loads((run_dir / NAME).read_text().splitlines()[0])


def test_a_second_job_is_refused_and_named_the_first(tmp_path):
    first = make(tmp_path / "a" / "run")
    first.acquire()
    before = (tmp_path / "a" / "run" / NAME).read_bytes()
    expected = rf"^--out: expected a run directory that no other job uses, .* process {os.getpid()} on .*, job none"
    with pytest.raises(InputError, match=expected):
        make(tmp_path / "a" / "run", "other").acquire()
    assert (tmp_path / "a" / "run" / NAME).read_bytes() == before
    first.release()
    assert list(tmp_path.iterdir()) == []  # the folders that were made for the lock
    make(tmp_path, "other").acquire()
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


def test_the_lock_of_a_killed_process_is_taken_over_at_once(tmp_path, caplog, monkeypatch):
    code = (
        "import sys, time; from pathlib import Path; from lsam_hpc.rundir.lock import RunLock; "
        "from lsam_hpc.rundir.processes import this_process; "
        "RunLock(Path(sys.argv[1]), 'killed', [this_process()], 0).acquire(); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=f"process {process.pid} on"):
            make(tmp_path).acquire()
        process.send_signal(signal.SIGKILL)
    module._LOG.parent.propagate = True
    monkeypatch.setattr(module, "STALE", 60.0)
    began = time.monotonic()
    with caplog.at_level("INFO"):
        make(tmp_path).acquire()
    module._LOG.parent.propagate = False
    assert time.monotonic() - began < 20
    assert f"from process {process.pid} on" in caplog.text
    assert "which has ended" in caplog.text
    assert holder(tmp_path)["token"] == "ours"
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


def test_a_job_elsewhere_is_alive_while_its_heartbeat_goes_on_and_no_longer(tmp_path):
    other = make(tmp_path, "other", [ELSEWHERE])
    other.acquire()
    other.start()
    with pytest.raises(InputError, match="no other job uses"):
        make(tmp_path).acquire()
    other._ended.set()
    other._thread.join()
    began = time.monotonic()
    make(tmp_path).acquire()
    assert 0.5 < time.monotonic() - began < 5  # it is watched until it is stale
    assert holder(tmp_path)["token"] == "ours"


@pytest.mark.parametrize("clock", [0.0, 1e12])
def test_ages_are_those_of_the_disk_whatever_this_hosts_clock_says(tmp_path, monkeypatch, clock):
    monkeypatch.setattr(time, "time", lambda: clock)

    def seconds():
        began = time.monotonic()
        make(tmp_path).acquire()
        return time.monotonic() - began

    make(tmp_path, "other", [ELSEWHERE]).acquire()
    assert seconds() > 0.5
    (tmp_path / NAME).unlink()
    make(tmp_path, "other", [ELSEWHERE]).acquire()
    long_ago = os.stat(tmp_path / NAME).st_mtime - 100
    os.utime(tmp_path / NAME, (long_ago, long_ago))
    monkeypatch.setattr(module, "STALE", 60.0)
    assert seconds() < 20
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


def test_processes_elsewhere_count_though_those_here_have_ended(tmp_path):
    dead = Process(this_process().machine, os.getpid(), "0")  # the id was used again
    assert lives([dead]) is False
    make(tmp_path, "other", [dead, ELSEWHERE]).acquire()
    began = time.monotonic()
    make(tmp_path).acquire()
    assert time.monotonic() - began > 0.5


def test_another_rank_goes_on_with_the_heartbeat(tmp_path):
    ranks = [this_process(), ELSEWHERE]
    first, second = (make(tmp_path, "ours", ranks, rank) for rank in range(2))
    first.acquire()
    second.start()
    time.sleep(0.2)
    assert holder(tmp_path)["rank"] == 0
    second.unresponsive = lambda: [0]
    deadline = time.monotonic() + 10
    while holder(tmp_path)["rank"] != 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert holder(tmp_path)["process"] == 1
    assert holder(tmp_path)["ranks"] == [1]
    second.steps = lambda: [7, 8]
    second.heartbeat()
    assert read_lock(tmp_path / NAME).progress == Progress([7, 8], [0])
    second.steps = lambda: [7, 10]
    second.heartbeat()
    assert read_lock(tmp_path / NAME).progress == Progress([7, 10], [0])
    first.unresponsive = second.unresponsive
    first.release()
    assert (tmp_path / NAME).exists()
    second.release()
    assert not (tmp_path / NAME).exists()


def test_a_suspended_job_learns_that_it_was_replaced(tmp_path):
    lost = []
    first = make(tmp_path, on_lost=lost.append)
    first.acquire()
    (tmp_path / NAME).unlink()
    first.heartbeat()  # somebody removed the file
    assert holder(tmp_path)["token"] == "ours"
    assert lost == []
    (tmp_path / NAME).unlink()
    make(tmp_path, "other").acquire()
    first.heartbeat()
    assert len(lost) == 1
    assert f"taken over by process {os.getpid()} on" in lost[0]
    first.release()
    assert holder(tmp_path)["token"] == "other"


@pytest.mark.parametrize("content", [b"", b"{", b'{"token": 1}', b"[]"])
def test_a_damaged_lock_becomes_stale(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    make(tmp_path).acquire()
    assert holder(tmp_path)["token"] == "ours"


def test_one_of_many_takes_over(tmp_path):
    """20 jobs start at the same moment in a directory that a killed job left: one holds it."""
    dead = Process(this_process().machine, os.getpid(), "0")
    make(tmp_path, "killed", [dead]).acquire()
    began, outcomes = threading.Barrier(20), []

    def start(number):
        lock = make(tmp_path, str(number))
        began.wait()
        try:
            lock.acquire()
        except InputError:
            outcomes.append(None)
        else:
            outcomes.append(number)

    threads = [threading.Thread(target=start, args=(number,)) for number in range(20)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    winners = [number for number in outcomes if number is not None]
    assert len(outcomes) == 20
    assert len(winners) == 1
    assert holder(tmp_path)["token"] == str(winners[0])
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


def test_a_lock_that_another_job_took_over_or_is_taking_over_is_not_removed(tmp_path):
    (tmp_path / NAME).touch()
    stale = read_lock(tmp_path / NAME)
    (tmp_path / f"{NAME}.takeover").touch()
    make(tmp_path)._take_over(stale, "")
    assert (tmp_path / NAME).exists()
    (tmp_path / f"{NAME}.takeover").unlink()
    make(tmp_path, "faster").acquire()
    make(tmp_path)._take_over(stale, "")
    assert holder(tmp_path)["token"] == "faster"


def test_a_job_that_was_killed_while_it_took_over(tmp_path):
    (tmp_path / NAME).touch()
    (tmp_path / f"{NAME}.takeover").touch()
    make(tmp_path).acquire()
    assert holder(tmp_path)["token"] == "ours"
    assert [file.name for file in tmp_path.iterdir()] == [NAME]


def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="--out: expected a directory, found a file"):
        make(tmp_path / "file").acquire()
    with pytest.raises(InputError, match=r"--out: expected a directory that can be written, .*: Not a directory"):
        make(tmp_path / "file" / "run").acquire()
