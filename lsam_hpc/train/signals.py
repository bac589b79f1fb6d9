"""Signals and time limits that end a job before its budget is spent."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from datetime import datetime
from types import FrameType

from lsam_hpc.errors import InputError

REPEATED = 2.0  # s in which the same signal counts once


class StopRequest:
    """Notices that the job has to end: a signal arrived, or its time limit is near.

    The handler only sets a flag; a second signal ends the process at once, as without a handler. The same signal again
    within two seconds is ignored: the batch system and the launcher may both deliver it.

    Args:
        signals: names such as SIGUSR1 or USR1.
        end: time at which the batch system ends the job, seconds since 1970; None: never.
        margin: seconds before `end` that are reserved for the last checkpoint.

    Raises:
        InputError: a signal is unknown or cannot be caught.
    """

    def __init__(self, signals: Sequence[str], end: float | None, margin: float) -> None:
        self.reason: str | None = None
        self._first: tuple[int, float] | None = None  # the first signal, and when
        self._stop_at = None if end is None else end - margin
        for number in [_number(name) for name in signals]:
            signal.signal(number, self._caught)

    def asked(self) -> bool:
        """Return True if the job has to end; `reason` then says why."""
        if self.reason is None and self._stop_at is not None and time.time() >= self._stop_at:
            self.reason = "the job's time limit"
        return self.reason is not None

    def _caught(self, number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if self._first is not None:
            first, when = self._first
            if first == number and now - when < REPEATED:
                return
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._first = number, now
        self.reason = self.reason or signal.Signals(number).name


def job_end() -> float | None:
    """Return the time at which the batch system ends this job, seconds since 1970; None if it is unknown.

    Slurm states it in the environment or in squeue, PBS in qstat.
    """
    if end := os.environ.get("SLURM_JOB_END_TIME"):
        return float(end)
    if job := os.environ.get("SLURM_JOB_ID"):
        if array := os.environ.get("SLURM_ARRAY_JOB_ID"):  # SLURM_JOB_ID of one element can mean the whole array
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
        number = signal.Signals["SIG" + name.strip().upper().removeprefix("SIG")]
    except KeyError as error:
        raise InputError(f"signals: expected names such as USR1 or TERM, found {name!r}") from error
    if number in (signal.SIGKILL, signal.SIGSTOP):
        raise InputError(f"signals: expected ones that can be caught, found {name!r}")
    return number


def _output(*words: str) -> str:
    """Return the output of a command of the batch system, '' if the command fails or does not exist."""
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
