"""The state of a run in the comment of its Slurm job: `squeue -o "%i %j %k"` or `scontrol show job` shows it."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable
from types import TracebackType

from lsam_hpc.util.log import get_logger

INTERVAL = 300.0  # s between two updates of the progress, to spare Slurm's controller
_LOG = get_logger(__name__)


class JobComment:
    """Writes the run's state and progress into the comment of the Slurm job; does nothing outside Slurm.

    A context that writes "failed" if an exception leaves it.

    Args:
        total: steps of all ranks together.
        speaks: whether this rank writes; asked every five minutes and at the end.
    """

    def __init__(self, total: int, speaks: Callable[[], bool]) -> None:
        self._job = os.environ.get("SLURM_JOB_ID")
        array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
        if self._job and array and task:
            self._job = f"{array}_{task}"
        self._total, self._step, self._speaks = total, 0, speaks
        self._next = -1.0  # time of the next update
        self._thread: threading.Thread | None = None

    def step(self, step: int) -> None:
        """Write the progress every five minutes, in a thread.

        Args:
            step: number of steps taken by all ranks.
        """
        self._step = min(step, self._total)
        if self._job is None or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + INTERVAL
        if not self._speaks():
            return
        self._thread = threading.Thread(target=self._write, args=("running",), daemon=True)
        self._thread.start()

    def end(self, state: str) -> None:
        """Write the final state, and wait until it is written.

        Args:
            state: such as "finished".
        """
        if self._thread is not None:
            self._thread.join()
        if self._job is not None and self._speaks():
            self._write(state)

    def __enter__(self) -> JobComment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.end("failed")

    def _write(self, state: str) -> None:
        text = f"lsam: {state}, step {self._step:,} of {self._total:,}"
        words = ["scontrol", "update", f"JobId={self._job}", f"Comment={text}"]
        try:
            subprocess.run(words, check=True, timeout=30, capture_output=True, text=True, errors="replace")
        except (OSError, subprocess.SubprocessError) as error:
            self._job = None
            detail = str(getattr(error, "stderr", None) or error).strip()
            _LOG.warning("the job's comment was not written, and is not written again: %s", detail)
