"""The state of a run in the comment of its Slurm job: `squeue -o "%i %j %k"` or `scontrol show job` shows it."""

from __future__ import annotations

import os
import subprocess
import threading
import time

from lsam_hpc.util.log import get_logger

INTERVAL = 300.0  # s between two updates of the progress, to spare Slurm's controller
_LOG = get_logger(__name__)


class JobComment:
    """Writes the run's state and progress into the comment of the Slurm job; does nothing outside Slurm.

    Args:
        enabled: False on all ranks but one.
        total: steps of all ranks together.
    """

    def __init__(self, total: int, *, enabled: bool) -> None:
        self._job = os.environ.get("SLURM_JOB_ID") if enabled else None
        if self._job and (array := os.environ.get("SLURM_ARRAY_JOB_ID")):
            self._job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
        self._total, self._step = total, 0
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
        self._thread = threading.Thread(target=self._write, args=("running",), daemon=True)
        self._thread.start()

    def end(self, state: str) -> None:
        """Write the final state, and wait until it is written.

        Args:
            state: such as "finished".
        """
        if self._thread is not None:
            self._thread.join()
        if self._job is not None:
            self._write(state)

    def _write(self, state: str) -> None:
        text = f"lsam: {state}, step {self._step:,} of {self._total:,}"
        words = ["scontrol", "update", f"JobId={self._job}", f"Comment={text}"]
        try:
            subprocess.run(words, check=True, timeout=30, capture_output=True, text=True)
        except (OSError, subprocess.SubprocessError) as error:
            self._job = None
            detail = str(getattr(error, "stderr", None) or error).strip()
            _LOG.warning("the job's comment was not written, and is not written again: %s", detail)
