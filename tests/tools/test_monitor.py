"""`lsam monitor`: figures that are known in closed form, and live writers, one of which is killed."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from queue import Empty, Queue
from types import SimpleNamespace

import pytest

from lsam_hpc import InputError
from lsam_hpc.tools import monitor
from lsam_hpc.trajectory import Run, TrajectoryWriter, writer
from tests.helpers.logs import LAYOUT, attributes, exchange_row, make_run, step_row
from tests.helpers.mpis import ROOT

START = 1_000_000.0  # start of the staged runs, seconds since 1970


def stage(monkeypatch, path, times, losses=None, stale=(), accepted=None, result=None, **more):
    """Write a run with one rank per list of times in seconds after the start."""
    path.mkdir()
    (path / "config.json").write_text("{}")
    clock = SimpleNamespace(time=lambda: clock.now, monotonic=time.monotonic, now=0.0)
    monkeypatch.setattr(writer, "time", clock)
    for rank, moments in enumerate(times):
        about = attributes(len(times), start_time=START, host=f"node{rank}", **more)
        with TrajectoryWriter(path, rank, LAYOUT, about) as log:
            for i, moment in enumerate(moments):
                clock.now = START + moment
                log.step(**{**step_row(i), "loss": losses[i] if losses else 1.0})
            for i, updates in enumerate(stale):
                row = {**exchange_row(i), "staleness": updates, "accepted": 1 if accepted is None else accepted[i]}
                log.exchange(**row)
            if result is None:  # leave the file as a rank that runs, or was killed
                log.flush()
                shutil.copy(log.path, tmp := log.path.with_suffix(".open"))
            log.close(result)
        if result is None:
            tmp.replace(log.path)
    return path


def statuses_at(path, now):
    with Run(path) as run:
        return monitor.statuses(run, START + now)


def rows(text):
    """Return the table's cells, a list per rank."""
    lines = text.splitlines()
    head = next(i for i, line in enumerate(lines) if line.split()[:2] == ["rank", "host"])
    cells = [re.split(r"\s{2,}", line.strip()) for line in lines[head:]]
    assert cells[0] == list(monitor.HEAD)
    return [row for row in cells[1:] if len(row) == len(monitor.HEAD)]


def test_figures(tmp_path, monkeypatch):
    # Ten steps a second for 100 s, then one each 2 s for 80 s: the rate of the last minute is 0.5.
    times = [i / 10 for i in range(1000)] + [100 + 2 * i for i in range(41)]
    losses = [100.0] * 1021 + list(range(20))
    path = stage(monkeypatch, tmp_path / "run", [times], losses, stale=[0, 1, 5], accepted=[1, 0, 0])
    (status,) = statuses_at(path, now=192.5)
    assert (status.rank, status.host) == (0, "node0")
    assert status.step == 1041
    assert status.global_step == 2 * 1040 + 1
    assert status.loss == 9.5
    assert status.rate == pytest.approx(0.5, rel=1e-12)
    assert status.staleness_mean == 2
    assert status.staleness_max == 5
    assert status.distance == 2
    assert status.refused == 2
    assert status.age == pytest.approx(12.5)
    assert (status.state, status.ended) == ("running", False)


def test_a_rank_without_steps_or_with_one(tmp_path, monkeypatch):
    none, one = statuses_at(stage(monkeypatch, tmp_path / "run", [[], [4.0]]), now=10)
    assert (none.step, none.global_step, one.step, one.global_step) == (0, 0, 1, 1)
    assert all(math.isnan(x) for x in (none.loss, none.rate, one.rate, none.distance, one.staleness_mean))
    assert (none.age, one.age) == (10, 6)
    assert rows(monitor.table("run", [none, one])) == [
        ["0", "node0", "0", "0", "-", "-", "-", "-", "-", "0", "10 s", "running"],
        ["1", "node1", "1", "1", "1.0000", "-", "-", "-", "-", "0", "6 s", "running"],
    ]


def test_states(tmp_path, monkeypatch):
    path = stage(monkeypatch, tmp_path / "open", [[1.0], [20.0]])
    assert [s.state for s in statuses_at(path, now=30.9)] == ["running", "running"]
    assert [s.state for s in statuses_at(path, now=31.1)] == ["silent", "running"]
    assert [s.state for s in statuses_at(path, now=50.1)] == ["silent", "silent"]
    ended = stage(monkeypatch, tmp_path / "ended", [[1.0]], result={"steps": 1})
    assert [s.state for s in statuses_at(ended, now=1e6)] == ["ended"]
    assert [s.age for s in statuses_at(ended, now=0.5)] == [0]  # a host whose clock is ahead


def test_the_line_on_the_run(tmp_path, monkeypatch):
    # 4 and 2 steps/s run; the third rank, with 10 steps/s, is silent.
    fast, slow, dead = ([90 + i / rate for i in range(int(10 * rate))] for rate in (4, 2, 10))
    path = stage(monkeypatch, tmp_path / "run", [fast, slow, [t - 60 for t in dead]])
    text = monitor.table(path, statuses_at(path, now=100))
    assert text.splitlines()[0] == f"{path}: 3 ranks, total step 199, 6.0 steps/s"
    assert [row[-1] for row in rows(text)] == ["running", "running", "silent"]
    assert "from rank" not in text
    last = monitor.table(path, statuses_at(path, now=360)).splitlines()[-1]
    assert last == "no row for 5 min from rank 2 (node2): stopped or failed"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h"), (86399, "23 h"), (200_000, "2 d")],
)
def test_ages_are_in_whole_units(tmp_path, monkeypatch, seconds, text):
    path = stage(monkeypatch, tmp_path / "run", [[0.0]])
    assert rows(monitor.table(path, statuses_at(path, now=seconds)))[0][-2] == text


def test_once(tmp_path, capsys):
    path = make_run(tmp_path / "run", ranks=3)
    assert monitor.main([str(path), "--once"]) == 0
    out = capsys.readouterr().out
    assert [row[:4] for row in rows(out)] == [[str(rank), "here", "10", "19"] for rank in range(3)]
    assert "\x1b" not in out


def test_a_run_that_ended_is_shown_once(tmp_path, capsys):
    path = make_run(tmp_path / "run", result={"steps": 10})
    assert monitor.main([str(path)]) == 0
    assert [row[-1] for row in rows(capsys.readouterr().out)] == ["ended", "ended"]


def test_the_monitor_ends_when_no_rank_writes_any_more(tmp_path, capsys, monkeypatch):
    # start_time is in 1970, and the ranks did not end.
    path = stage(monkeypatch, tmp_path / "run", [[], []])
    assert monitor.main([str(path)]) == 0
    assert "from rank 0 (node0), 1 (node1): stopped or failed" in capsys.readouterr().out


def test_a_terminal_is_redrawn_in_place(tmp_path, capsys, monkeypatch):
    path = make_run(tmp_path / "run", result={"steps": 10})
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert monitor.main([str(path)]) == 0
    assert capsys.readouterr().out.startswith(f"\x1b[H\x1b[2J{path}: 2 ranks")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--once"], "expected a run directory, found nothing"),
        ([], "expected a run directory, found nothing"),
        (["--interval", "0"], "--interval: expected more than 0 seconds, found 0.0"),
        (["--interval", "nan"], "--interval: expected more than 0 seconds, found nan"),
        (["--interval", "inf"], "--interval: expected more than 0 seconds, found inf"),
        (["--interval", "soon"], "--interval: invalid float value"),
    ],
)
def test_bad_usage(tmp_path, capsys, argv, message):
    with pytest.raises(InputError, match=message):
        monitor.main([str(tmp_path / "run"), *argv])
    assert capsys.readouterr().out == ""


class Clock:
    """A replacement for the time module in which only sleeps take time, and events happen during sleeps.

    Args:
        events: (seconds, function) of each sleep: its length, and a function to call at its end.
    """

    def __init__(self, monkeypatch, now, events):
        self._sleep = monitor.sleep
        monkeypatch.setattr(monitor, "time", self)
        monkeypatch.setattr(monitor, "sleep", self.sleep)
        self.now = now
        self.slept = []
        self._events = iter(events)

    def time(self):
        return self.now

    def monotonic(self):
        return self.now

    def sleep(self, asked, interrupts):
        self.slept.append(asked)
        seconds, event = next(self._events)
        self.now += seconds
        event()
        return self._sleep(0, interrupts)


def nothing():
    pass


def test_files_that_stay_missing_are_named(tmp_path, capsys, monkeypatch):
    path = make_run(tmp_path / "run", ranks=2)
    (path / "rank-0001.h5").unlink()
    message = "found none for rank 1"
    with pytest.raises(InputError, match=message):
        monitor.main([str(path), "--once"])
    Clock(monkeypatch, 0.0, [(59.0, nothing), (2.0, nothing)])
    with pytest.raises(InputError, match=message):
        monitor.main([str(path)])
    # Printed once, not repeatedly.
    (line,) = capsys.readouterr().out.split("\n\n")[:-1]
    assert line.startswith("waiting for the run's files: ")
    assert line.endswith(message)


def test_a_file_may_be_missing_for_a_while(tmp_path, capsys, monkeypatch):
    path = stage(monkeypatch, tmp_path / "run", [[0.0], [0.0]])
    file, aside = path / "rank-0001.h5", tmp_path / "aside"
    events = [(50.0, nothing), (50.0, lambda: file.rename(aside)), (50.0, lambda: aside.rename(file)), (151.0, nothing)]
    Clock(monkeypatch, START, events)
    assert monitor.main([str(path)]) == 0
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert ["waiting" in block for block in blocks] == [False, False, True, False, False]


def test_the_monitor_waits_five_minutes_for_silent_ranks(tmp_path, capsys, monkeypatch):
    path = stage(monkeypatch, tmp_path / "run", [[0.0], [10.0]])
    Clock(monkeypatch, START + 40, [(250.0, nothing), (15.0, nothing), (10.0, nothing)])
    assert monitor.main([str(path)]) == 0
    blocks = capsys.readouterr().out.strip().split("\n\n")
    assert [block.count("stopped or failed") for block in blocks] == [0, 0, 1, 1]
    assert blocks[2].endswith("from rank 0 (node0): stopped or failed")
    assert blocks[3].endswith("from rank 0 (node0), 1 (node1): stopped or failed")


def test_an_interrupt_in_a_destructor_ends_it_quietly(tmp_path, monkeypatch):
    class Interrupted:
        def __del__(self):
            signal.raise_signal(signal.SIGINT)

    path = stage(monkeypatch, tmp_path / "run", [[0.0]])
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lost.append)
    clock = Clock(monkeypatch, START, [(1.0, Interrupted)])
    before = signal.getsignal(signal.SIGINT)
    assert monitor.main([str(path)]) == 0
    assert (len(clock.slept), lost, signal.getsignal(signal.SIGINT)) == (1, [], before)


@pytest.fixture
def foreground():
    """Make Ctrl-C raise KeyboardInterrupt; a background job would ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_interrupt_does_not_wait_for_the_read(tmp_path, monkeypatch, foreground):
    path = stage(monkeypatch, tmp_path / "run", [[0.0]])
    passed = []

    def slow(run, now, job):
        passed.append("before")
        signal.raise_signal(signal.SIGINT)
        passed.append("first")
        signal.raise_signal(signal.SIGINT)
        passed.append("second")

    Clock(monkeypatch, START, [])
    monkeypatch.setattr(monitor, "statuses", slow)
    assert monitor.main([str(path)]) == 0
    assert passed == ["before", "first"]


def test_an_interrupt_ends_a_sleep():
    timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
    with monitor.interrupts() as interrupts:
        timer.start()
        assert monitor.sleep(60.0, interrupts)


def test_it_sleeps_for_as_long_as_it_reads(tmp_path, monkeypatch):
    path = stage(monkeypatch, tmp_path / "run", [[0.0]])
    clock = Clock(monkeypatch, START, [(100.0, nothing), (201.0, nothing)])
    takes = iter([0.5, 7.0, 0.0])

    def slow(run, now, job):
        clock.now += next(takes)
        return statuses(run, now, job)

    statuses = monitor.statuses
    monkeypatch.setattr(monitor, "statuses", slow)
    assert monitor.main([str(path)]) == 0
    assert clock.slept == [2.0, 7.0]


class Live:
    """`lsam monitor` in a process of its own, and the tables that it prints."""

    def __init__(self, path):
        words = [sys.executable, "-m", "lsam_hpc.tools.monitor", str(path), "--interval", "0.05"]
        self.process = subprocess.Popen(
            words,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background job ignores it
        )
        self._lines = Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def until(self, condition, expected):
        """Return the first block of lines for which a condition is true."""
        deadline, block = time.monotonic() + 60, []
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                pytest.fail(f"not within 60 s: {expected}; last seen: {block}")
            assert line is not None, f"the monitor ended before: {expected}\n{self.process.stderr.read()}"
            if line:
                block.append(line)
            elif block:
                if condition("\n".join(block)):
                    return "\n".join(block)
                block = []

    def ended(self):
        """Return the exit code and what went to stderr."""
        return self.process.wait(timeout=60), self.process.stderr.read()

    def _read(self):
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)


WRITER = """
import sys, time
from pathlib import Path
from lsam_hpc.trajectory import TrajectoryWriter
from tests.helpers.logs import LAYOUT, attributes, step_row, exchange_row
path, rank = Path(sys.argv[1]), int(sys.argv[2])
writer = TrajectoryWriter(path, rank, LAYOUT, attributes(2, start_time=time.time()))
i = 0
while not (path / "stop").exists():
    writer.step(**step_row(i))
    writer.exchange(**exchange_row(i))
    writer.flush()
    i += 1
    time.sleep(0.01)
writer.close({"steps": i})
"""


@pytest.fixture
def start():
    """Start writers; kill those that still run at the end."""
    started = []

    def go(path, rank):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(rank)], cwd=ROOT)
        started.append(child)
        return child

    yield go
    for child in started:
        child.kill()
        child.wait()


@pytest.fixture
def live():
    """Start monitors; kill those that still run at the end."""
    started = []

    def go(path):
        started.append(Live(path))
        return started[-1]

    yield go
    for one in started:
        one.process.kill()
        one.process.wait()


def steps_of(rank, at_least):
    def condition(text):
        return "last row" in text and int(rows(text)[rank][2].replace(",", "")) >= at_least

    return condition


def states(text):
    """Return the ranks' states; none if a file could not be read at that moment."""
    return [row[-1] for row in rows(text)] if "last row" in text else []


def test_from_the_first_file_to_the_last_row(tmp_path, start, live):
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({}))
    shown = live(path)
    shown.until(lambda text: "waiting for the run's files" in text, "a message that there is no file")
    children = [start(path, 0)]
    shown.until(lambda text: "found none for rank 1" in text, "a message on the missing rank")
    children.append(start(path, 1))
    text = shown.until(steps_of(1, 10), "ten steps of rank 1")
    assert [row[-1] for row in rows(text)] == ["running", "running"]
    seen = int(rows(text)[1][2])
    shown.until(steps_of(1, seen + 10), "ten more")
    (path / "stop").touch()
    assert [child.wait(timeout=60) for child in children] == [0, 0]
    shown.until(lambda text: states(text) == ["ended", "ended"], "the end of both")
    assert shown.ended() == (0, "")


def test_a_killed_rank_stops_and_ctrl_c_ends_the_monitor_quietly(tmp_path, start, live):
    path = tmp_path / "run"
    path.mkdir()
    (path / "config.json").write_text(json.dumps({}))
    children = [start(path, 0), start(path, 1)]
    shown = live(path)
    shown.until(steps_of(0, 10), "ten steps of rank 0")
    os.kill(children[0].pid, signal.SIGKILL)
    children[0].wait()
    shown.until(
        lambda text: "last row" in text and rows(text)[0][-2] not in ("0 s", "1 s"), "the last row's age to grow"
    )
    seen = int(rows(shown.until(steps_of(1, 1), "rank 1"))[1][2])
    text = shown.until(steps_of(1, seen + 10), "further steps of rank 1")
    assert [row[-1] for row in rows(text)] == ["running", "running"]
    now = time.time()
    with Run(path) as run:
        dead, alive = monitor.statuses(run, now)
        assert dead.age > alive.age + 1
        # Half a second after the dead rank's last row is 30 s old, the other's is not.
        later = monitor.statuses(run, now + monitor.SILENT - dead.age + 0.5)
    assert [status.state for status in later] == ["silent", "running"]
    shown.process.send_signal(signal.SIGINT)
    assert shown.ended() == (0, "")
