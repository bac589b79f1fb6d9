"""Signals and time limits: why a job has to end before its work is done."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from datetime import datetime
from types import FrameType

from lsam_hpc.errors import InputError

REPEATED = 2.0  # s


class Ending:
    """Notices that the job has to end: a signal came, or its time is nearly up.

    A handler only sets a flag; a second signal ends the process at once, as it would without this. The same one within
    two seconds counts once: the batch system and the launcher may both deliver it.

    Args:
        signals: names, SIGUSR1 or USR1.
        end: when the batch system ends the job, seconds since 1970; None: never.
        margin: s before `end` that are left for the last checkpoint.

    Raises:
        InputError: a signal is not known or cannot be caught.
    """

    def __init__(self, signals: Sequence[str], end: float | None, margin: float) -> None:
        self.reason: str | None = None
        self._caught_before: tuple[int, float] | None = None  # the first signal, and when
        self._before = None if end is None else end - margin
        for number in [_number(name) for name in signals]:
            signal.signal(number, self._caught)

    def asked(self) -> bool:
        """Return whether the job has to end; `reason` then says why."""
        if self.reason is None and self._before is not None and time.time() >= self._before:
            self.reason = "the job's time limit"
        return self.reason is not None

    def _caught(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._caught_before is not None:
            before, when = self._caught_before
            if before == number and now - when < REPEATED:
                return
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._caught_before = number, now
        self.reason = self.reason or signal.Signals(number).name


def job_end() -> float | None:
    """Return when the batch system ends this job, seconds since 1970; None if it does not say.

    Slurm tells it in the environment or by squeue, PBS by qstat.
    """
    if end := os.environ.get("SLURM_JOB_END_TIME"):
        return float(end)
    if job := os.environ.get("SLURM_JOB_ID"):
        if array := os.environ.get("SLURM_ARRAY_JOB_ID"):  # the number of one of its jobs means all of them
            job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        text = _output("squeue", "-h", "-j", job, "-o", "%e")
        return datetime.fromisoformat(text).timestamp() if text and text[0].isdigit() else None
    if job := os.environ.get("PBS_JOBID"):
        for line in _output("qstat", "-f", job).splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "Walltime.Remaining" and value.strip().isdigit():
                return time.time() + int(value)
    return None


def _number(name: str) -> signal.Signals:
    try:
        found = signal.Signals["SIG" + name.strip().upper().removeprefix("SIG")]
    except KeyError as error:
        raise InputError(f"signals: expected names such as USR1 or TERM, found {name!r}") from error
    if found in (signal.SIGKILL, signal.SIGSTOP):
        raise InputError(f"signals: expected ones that can be caught, found {name!r}")
    return found


def _output(*words: str) -> str:
    """Return what a command of the batch system prints, '' if there is none."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
