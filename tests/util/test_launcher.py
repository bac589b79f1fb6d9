"""Orphans: processes whose launcher, a shell here, is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lsam_hpc.util import launcher, processes
from lsam_hpc.util.launcher import LauncherWatch
from tests.helpers.mpis import ROOT
from tests.helpers.waiting import wait_until

RANK = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}
# The rank's number is set below the launcher, and the rank has a shell of its own above it.
LAUNCHER = 'OMPI_COMM_WORLD_RANK=1 sh -c \'"$@"; echo $? >code\' sh "$@" & wait'
START = """
import os, pathlib, signal, sys, time
from lsam_hpc.util import launcher, processes
watch = launcher.watch()
if "guard" in sys.argv: watch.guard()
elif "wrap" not in sys.argv: watch.start()
pathlib.Path("above").write_text(" ".join(map(str, processes.ancestors())))
while os.path.getsize("above") == 0: pass
"""


@contextmanager
def orphan(folder: Path, code: str, *arguments: str, **files: int) -> Iterator[list[int]]:
    """Run a program as a rank and kill its launcher; yield the processes above the program."""
    words = ["sh", "-c", LAUNCHER, "sh", sys.executable, "-c", START + code, *arguments]
    env = {**os.environ, "OMPI_COMM_WORLD_SIZE": "2", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, env=env, cwd=folder, **files) as shell:  # type: ignore[call-overload]
        above = folder / "above"
        wait_until(lambda: above.exists() and above.read_text() != "", "the rank's start")
        shell.kill()
        shell.wait()
        pids = [int(word) for word in above.read_text().split()]
        assert pids[-1] == shell.pid
        yield pids


def code(folder: Path, seconds: float = 10.0) -> int:
    """Return the orphan's exit code."""
    file = folder / "code"
    wait_until(lambda: file.exists() and file.read_text().endswith("\n"), "the orphan's end", seconds)
    return int(file.read_text())


def test_the_launcher_is_the_first_process_that_is_not_of_the_rank(tmp_path: Path) -> None:
    with orphan(tmp_path, "") as above:
        assert len(above) == 2
    code(tmp_path)


def test_a_loop_learns_of_it(tmp_path: Path) -> None:
    program = "watch.started()\nwhile not watch.gone: time.sleep(0.01)\nprint(watch.reason); sys.exit(7)"
    with (tmp_path / "out").open("wb") as out, orphan(tmp_path, program, stdout=out.fileno()) as above:
        assert code(tmp_path) == 7
    assert (tmp_path / "out").read_text() == f"its launcher, process {above[-1]}, has ended\n"


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("", "training has not started"),
        ("launcher.STEP = 0.5; watch.started()", "no step ended within 0.5 s"),
        ("launcher.ENDING = 0.5; watch.started(); watch.ending()", "the rank did not end within 0.5 s"),
        (
            "watch.started(); watch.gone; launcher.ENDING = 0.5\nwhile not watch.gone: time.sleep(0.01)",
            "the rank did not end within 0.5 s",
        ),
    ],
)
def test_a_rank_that_hangs_is_ended(tmp_path: Path, program: str, why: str) -> None:
    with (
        (tmp_path / "err").open("wb") as err,
        orphan(tmp_path, f"{program}\ntime.sleep(60)", stderr=err.fileno()) as above,
    ):
        assert code(tmp_path) == 3
    line = f"lsam train: stopped: its launcher, process {above[-1]}, has ended, and {why}\n"
    assert (tmp_path / "err").read_text() == line


@pytest.mark.parametrize(
    ("handler", "expected"),
    [
        ("", 3),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", 3),
        ("signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))", 7),  # it saves, and ends by itself
        ("launcher.TERM = 0.5; signal.signal(signal.SIGTERM, lambda *_: None)", 3),
    ],
)
def test_a_program_with_its_own_loop_is_ended(tmp_path: Path, handler: str, expected: int) -> None:
    with (
        (tmp_path / "err").open("wb") as err,
        orphan(tmp_path, f"{handler}\ntime.sleep(60)\ntime.sleep(60)", "guard", stderr=err.fileno()) as above,
    ):
        assert code(tmp_path) == expected
    line = f"lsam: stopped: its launcher, process {above[-1]}, has ended\n" * (expected == 3)
    assert (tmp_path / "err").read_text() == line


def test_a_wrapped_script_is_ended_before_it_has_started_mpi(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("import time; time.sleep(60)")
    program = "from lsam_hpc.cli import main; main(['wrap', '--', 'script.py'])"
    with orphan(tmp_path, program, "wrap"):
        assert code(tmp_path) == 3


def test_a_program_that_cannot_say_why_is_ended_too(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with orphan(tmp_path, "time.sleep(60)", "guard", stderr=writing):
        os.close(writing)
        assert code(tmp_path) == 3


def test_a_rank_of_lsam_train_is_not_guarded_besides(tmp_path: Path) -> None:
    program = "watch.guard(); watch.started()\nwhile not watch.gone: time.sleep(0.01)\ntime.sleep(2); sys.exit(7)"
    with orphan(tmp_path, program):
        assert code(tmp_path) == 7


def test_a_long_step_may_end(tmp_path: Path) -> None:
    # Steps of 1 s, one of them before, and a limit of 0.1 s: twice the longest step counts.
    program = "launcher.STEP = 0.1; watch._longest = 1.0; watch.started()\nwhile not watch.gone: time.sleep(1)"
    with orphan(tmp_path, program):
        assert code(tmp_path) == 0


def test_output_without_a_reader_is_dropped(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    program = (
        "while not watch.check(): time.sleep(0.01)\n"
        "time.sleep(0.1); print('a' * 100_000); print('b', file=sys.stderr); print('c', flush=True); sys.exit(7)"
    )
    with orphan(tmp_path, f"watch.started()\n{program}", stdout=writing, stderr=writing):
        os.close(reading)
        os.close(writing)
        assert code(tmp_path) == 7


def test_output_on_a_full_disk_is_an_error(tmp_path: Path) -> None:
    program = "launcher.survive_broken_pipes(); print('a', flush=True)"
    with open("/dev/full", "wb") as full:
        words = [sys.executable, "-c", f"from lsam_hpc.util import launcher; {program}"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert "No space left on device" in done.stderr


def test_a_process_without_a_launcher_may_lose_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.ancestors({}) == []
    # A batch script that starts Python without srun.
    assert processes.ancestors({"SLURM_JOB_ID": "1", "SLURM_PROCID": "0"}) == []
    monkeypatch.setattr(launcher, "ancestors", list)
    watch = LauncherWatch()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert not watch.check()


def test_a_launcher_of_another_user_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """As srun's slurmstepd, whose environment only root can read."""
    monkeypatch.setattr(processes, "variable", lambda pid, name: None)
    above = processes.ancestors(RANK)
    assert above == [os.getppid()]
    assert not processes.reparented(above)
    monkeypatch.setattr(processes, "_parent", lambda pid: None)  # nor its status, with /proc mounted hidepid=2
    assert not processes.reparented([*above, 1])
    assert processes.reparented([os.getpid()])


def test_one_thread_ends_the_rank_and_says_why(monkeypatch, capsys):
    monkeypatch.setattr(launcher, "_LEAVING", threading.Lock())
    codes, pauses = [], []
    monkeypatch.setattr(os, "_exit", codes.append)
    launcher.leave("one")
    second = threading.Thread(target=launcher.leave, args=("two",), daemon=True)
    second.start()
    second.join(0.1)
    assert second.is_alive()  # it waits for the end
    assert (codes, capsys.readouterr().err) == ([launcher.STOPPED], "one\n")
    launcher._LEAVING.release()
    second.join()
    # A rank that says nothing lets the one that does end first.
    launcher._LEAVING.release()
    monkeypatch.setattr(time, "sleep", pauses.append)
    launcher.leave("")
    assert pauses == [launcher.AFTER]
