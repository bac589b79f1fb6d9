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
from lsam_hpc.util.launcher import LauncherWatch, watch

_UNLIMITED = 2**32 - 1  # s: Flux states it, or more, for a job without a time limit
REPEATED = 2.0  # s in which the same signal counts once


class StopRequest:
    """Notices that the job has to end: a signal arrived, its time limit is near, or its launcher has ended.

    The handler only sets a flag; a second signal ends the process at once, as without a handler. The same signal again
    within two seconds is ignored: the batch system and the launcher may both deliver it. After `ignore_signals()`
    all of them are.

    Args:
        signals: names such as SIGUSR1 or USR1.
        end: time at which the batch system ends the job, seconds since 1970; None: never.
        margin: seconds before `end` that are reserved for the last checkpoint.
        launcher: watches the launcher. Default: this process's watch.

    Raises:
        InputError: a signal is unknown or cannot be caught.
    """

    def __init__(
        self, signals: Sequence[str], end: float | None, margin: float, launcher: LauncherWatch | None = None
    ) -> None:
        self.reason: str | None = None
        self._launcher = launcher or watch()
        self._first: tuple[int, float] | None = None  # the first signal, and when
        self._ignored = False
        self._stop_at = None if end is None else end - margin
        for number in [_number(name) for name in signals]:
            signal.signal(number, self._caught)

    def asked(self) -> bool:
        """Return True if the job has to end; `reason` then says why."""
        if self.reason is None and self._stop_at is not None and time.time() >= self._stop_at:
            self.reason = "the job's time limit"
        if self._launcher.gone and self.reason is None:
            self.reason = self._launcher.reason
        return self.reason is not None

    def ignore_signals(self) -> None:
        """Ignore further signals: training has ended, and its last checkpoint is being written."""
        self._ignored = True

    def _caught(self, number: int, _: FrameType | None) -> None:
        if self._ignored:
            return
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

    Slurm states it in the environment or in squeue, PBS in qstat, Flux in `flux job timeleft`.
    """
    if "FLUX_JOB_ID" in os.environ:
        left = _output("flux", "job", "timeleft")
        return time.time() + int(left) if left.isdecimal() and int(left) < _UNLIMITED else None
    if end := os.environ.get("SLURM_JOB_END_TIME"):
        return float(end)
    if job := os.environ.get("SLURM_JOB_ID"):
        if array := os.environ.get("SLURM_ARRAY_JOB_ID"):  # SLURM_JOB_ID of one element can mean the whole array
            job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        text = _output("squeue", "-h", "-j", job, "-o", "%e")
        return datetime.fromisoformat(text).timestamp() if text and text[0].isdigit() else None
    if job := os.environ.get("PBS_JOBID"):
        return _pbs_end(_output("qstat", "-f", job))
    return None


def _pbs_end(text: str) -> float | None:
    """Return the end of a job from the output of `qstat -f`, seconds since 1970; None if it is unknown."""
    lines = (line.partition(" = ") for line in text.splitlines())
    fields = {name.strip(): value.strip() for name, _, value in lines}
    try:
        if "Walltime.Remaining" in fields:  # TORQUE
            return time.time() + int(fields["Walltime.Remaining"])
        start = time.mktime(time.strptime(fields["stime"], "%a %b %d %H:%M:%S %Y"))  # OpenPBS, PBS Professional
        hours, minutes, seconds = map(int, fields["Resource_List.walltime"].split(":"))
    except (KeyError, ValueError):  # a job without a limit, or a PBS that states it otherwise
        return None
    return start + 3600 * hours + 60 * minutes + seconds


def _number(name: str) -> signal.Signals:
    try:
        number = signal.Signals["SIG" + name.strip().upper().removeprefix("SIG")]
    except KeyError as error:
        raise InputError(f"signals: expected names such as USR1 or TERM, found {name!r}") from error
    if number in (signal.SIGKILL, signal.SIGSTOP):
        raise InputError(f"signals: expected ones that can be caught, found {name!r}")
    return number


def _output(*words: str) -> str:
    """Return the output of a command of the batch system, '' if the command fails or does not exist.

    The user's settings of its format are not passed on.
    """
    unwanted = ("SLURM_TIME_FORMAT", "SQUEUE_", "LC_", "LANG")
    env = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True, env=env)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
