"""Progress: a bar with the time left on a terminal, lines elsewhere, and neither if the work is short."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
from contextlib import contextmanager
from unittest.mock import patch

import pytest

from lsam_hpc import cli
from lsam_hpc.util import progress
from lsam_hpc.util.progress import Progress, counted
from tests.helpers.landscapes import WORDS, write_run

VERBS = {
    "merge": ("{run}", "{run}/all.h5"),
    "export": ("{run}", "--to", "npz", "--out", "{run}/all.npz"),
    "timeline": ("{run}", "{run}/all.json"),
    "inspect": ("{run}", "--verify"),
    "diagnose": ("{run}", "--from", "0", "--overwrite"),
    "surface": ("{run}", *WORDS, "--x=-1:1:3", "--overwrite"),
    "simulate": ("--ranks", "2", "--steps", "200"),
}
COLOUR = re.compile(r"\x1b\[[\d;]*m")


@contextmanager
def terminal():
    """Make stderr a terminal; yield a function that returns what was written to it since its last call."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", 24, 100, 0, 0))  # a bar needs columns
    os.set_blocking(master, False)

    def written():
        sys.stderr.flush()
        text = b""
        try:
            while part := os.read(master, 65536):
                text += part
        except BlockingIOError:
            pass
        return text.decode()

    with os.fdopen(slave, "w") as file, patch.object(sys, "stderr", file), patch.object(progress, "DELAY", 0.0):
        yield written
    os.close(master)


@pytest.mark.parametrize(
    "verb", [pytest.param(verb, marks=[pytest.mark.slow("imports ArviZ")] * (verb == "diagnose")) for verb in VERBS]
)
def test_a_terminal_shows_a_bar_without_colours_and_quiet_none(verb, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NO_COLOR", "1")
    path = write_run(tmp_path / "run", states=24, sketches=True)
    words = [verb, *(word.format(run=path) for word in VERBS[verb])]
    for options in ((), ("--quiet",)) if verb == "merge" else ((),):
        for file in path.glob("all.*"):
            file.unlink()
        with terminal() as written:
            assert cli.main([*words, *options]) == (verb == "inspect")  # the stored run has a gap
            shown = written()
        assert (f"lsam {verb}" in shown and "%|" in shown) == (not options), shown
        assert shown or options
        out = capsys.readouterr().out
        assert "%|" not in out
        assert not COLOUR.search(shown + out)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass between two looks at the clock."""
    now = [0.0]

    def monotonic():
        now[0] += 3.0
        return now[0]

    monkeypatch.setattr(progress.time, "monotonic", monotonic)


@pytest.mark.usefixtures("clock")
def test_elsewhere_a_line_every_ten_seconds_and_a_last_one(capsys):
    list(counted(range(8), "work", "item"))
    # 3 s a look: looks at 3 (start), 6, 9, 12, 15, ...: more than 10 s after 3 for the first time at 15.
    assert capsys.readouterr().err.splitlines() == [
        "work: 4 of 8 items, about 12 s left",
        "work: 8 of 8 items, about 0 s left",
        "work: 8 of 8 items, 27 s",
    ]


@pytest.mark.usefixtures("clock")
def test_work_done_before_does_not_count_for_the_time_left(capsys):
    with Progress("work", 1_000, done=900) as shown:
        for _ in range(4):
            shown.advance(10)
    assert capsys.readouterr().err.splitlines()[0] == "work: 940 of 1,000, about 18 s left"


def test_short_work_and_work_without_a_title_show_nothing(capsys):
    assert list(counted("abc", "work")) == list(counted("abc", None)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""


def test_an_error_ends_the_bar():
    def fails():
        for item in counted((1, 0), "work"):
            _ = 1 / item

    with terminal() as written:
        with pytest.raises(ZeroDivisionError):
            fails()
        assert written().endswith("\n")
