"""What gpu_day.py has measured so far, kept in a folder; the clock; commands that end in time."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import gpu_day_page as page

from lsam_hpc.errors import InputError
from lsam_hpc.util.files import replace_file

ROOT = Path(__file__).resolve().parents[2]
STATE, LOG = "gpu-day.json", "gpu-day.log"
RESERVE = 5.0  # s to write the results in


class Clock:
    """The time that is left of a number of minutes."""

    def __init__(self, minutes: float) -> None:
        self._end = time.monotonic() + 60 * minutes - RESERVE

    @property
    def left(self) -> float:
        """Seconds left; negative afterwards."""
        return self._end - time.monotonic()


class Day:
    """What was measured so far, kept in a folder.

    Args:
        out: the folder; made if there is none.
        about: what all calls must have in common.

    Raises:
        InputError: the folder holds something else, or a day with other data or ranks.
    """

    def __init__(self, out: Path, about: dict[str, Any]) -> None:
        self._out, state = out, out / STATE
        try:
            out.mkdir(parents=True, exist_ok=True)
            files = list(out.iterdir())
        except OSError as error:
            raise InputError(f"OUT: expected a folder that can be written, found {out}: {error.strerror}") from error
        if files and not state.is_file():
            raise InputError(f"OUT: expected an empty folder or one of this script, found no {STATE} in {out}")
        new = {"about": about, "machines": [], "parts": {}, "epochs": None, "pilots": {}, "records": [], "failed": []}
        try:
            self.state: dict[str, Any] = json.loads(state.read_text()) if files else new
            found = self.state["about"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{state}: expected what this script has written, found {error}") from error
        if found != about:
            raise InputError(f"OUT: expected the options of the earlier call, {_listed(found)}, found {_listed(about)}")
        self.state["failed"] = []  # what failed is tried again

    def save(self) -> None:
        """Write everything: the state, the page and the table."""
        for name, text in (
            (STATE, json.dumps(self.state, indent=1) + "\n"),
            ("gpu-day.md", page.markdown(self.state)),
            ("gpu-day.csv", page.table(self.state)),
        ):
            replace_file(self._out / name, partial(_write, text))

    def log(self, text: str) -> None:
        """Append to the log."""
        with (self._out / LOG).open("a") as file:
            file.write(text.rstrip() + "\n")

    def fail(self, what: str, reason: str) -> None:
        """Record that something did not end well."""
        self.state["failed"].append(f"{what}: {reason}")
        print(f"gpu-day: {what}: {reason}", file=sys.stderr, flush=True)


def run(day: Day, what: str, words: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """Run a command within a time; return its exit code, None if it was cut, and its output, which is also logged."""
    print(f"gpu-day: {what}", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(
            words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=max(1.0, seconds)
        )
        code, output = done.returncode, done.stdout.decode(errors="replace")
    except subprocess.TimeoutExpired as error:
        code, output = None, (error.stdout or b"").decode(errors="replace")
    day.log(f"{what}: exit code {code}\n{output}")
    return code, output


def _write(text: str, file: IO[bytes]) -> None:
    file.write(text.encode())


def _listed(options: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in options.items())
