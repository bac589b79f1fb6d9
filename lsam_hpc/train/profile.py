"""`lsam train --profile`: PyTorch's trace of a few steps of each rank, which `lsam timeline` merges."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lsam_hpc.errors import InputError
from lsam_hpc.options.training import PROFILE
from lsam_hpc.rundir.elsewhere import why
from lsam_hpc.util.log import get_logger

if TYPE_CHECKING:
    import torch

_LOG = get_logger(__name__)


def profiled(text: str) -> range:
    """Return the local steps to profile: `10:20` are the ten steps 10 to 19.

    Raises:
        InputError: the text is neither FIRST:END nor "none".
    """
    if text == "none":
        return range(0)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    steps = range(int(match[1]), int(match[2])) if match else range(0)
    if not steps:
        raise InputError(f"--profile: expected {PROFILE}, steps as in 10:20, or none, found {text!r}")
    return steps


class Profile:
    """Runs torch.profiler over some of a rank's steps and writes a Chrome trace of them.

    All threads are recorded, the exchange thread too. Do not start at step 0: memory is still being allocated then.

    Args:
        steps: local steps, numbered from 0.
        path: of the trace, ending in .json.gz; its directory is made.
        device: on which the rank trains.
    """

    def __init__(self, steps: range, path: Path, device: torch.device) -> None:
        import torch  # here: programs that only check options do not need torch

        from lsam_hpc.optim.accelerators import KINDS

        self._steps = steps
        self._path = path
        self._activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type in KINDS:
            self._activities.append(getattr(torch.profiler.ProfilerActivity, device.type.upper()))
        self._running: torch.profiler.profile | None = None
        if steps:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # otherwise every start and stop prints a line on stderr
            with self._profiler():  # the first start takes seconds, which must not count for a step
                pass

    def before(self, step: int) -> None:
        """Start or stop the profiler if the local step that follows requires it."""
        if self._running is not None and step not in self._steps:
            self.close()
        elif self._running is None and step in self._steps:
            self._running = self._profiler()
            self._running.start()

    def close(self) -> None:
        """Write the trace, if the profiler is running; warn if the disk fails."""
        if self._running is None:
            return
        profiler, self._running = self._running, None
        profiler.stop()
        # Not atomic_path: torch compresses only if the name ends in .gz, and a resumed run replaces the trace.
        part = self._path.with_name(f"part-{self._path.name}")
        try:
            self._path.parent.mkdir(exist_ok=True)
            profiler.export_chrome_trace(str(part))
            part.replace(self._path)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError for some disk errors
            _LOG.warning("%s: trace not written, training continues: %s", self._path, why(error))
            with suppress(OSError):
                part.unlink()

    def _profiler(self) -> torch.profiler.profile:
        import torch
        from torch._C._profiler import _ExperimentalConfig

        return torch.profiler.profile(
            activities=self._activities, experimental_config=_ExperimentalConfig(profile_all_threads=True)
        )
