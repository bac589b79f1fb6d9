"""`lsam train --profile`: what PyTorch computes in a few steps of each rank, for `lsam timeline` to join."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from lsam_hpc.errors import InputError

if TYPE_CHECKING:
    import torch

SYNTAX = "FIRST:END"


def profiled(text: str) -> range:
    """Return the local steps that an option asks to profile: `10:20` are ten, from the one with number 10.

    Raises:
        InputError: it is neither such steps nor "none".
    """
    if text == "none":
        return range(0)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    steps = range(int(match[1]), int(match[2])) if match else range(0)
    if not steps:
        raise InputError(f"--profile: expected {SYNTAX}, steps as in 10:20, or none, found {text!r}")
    return steps


class Profile:
    """Runs torch.profiler over some of a rank's steps and writes a Chrome trace of them.

    All threads are seen, so the exchange's arithmetic too. The first step of a run is no good start: memory is still
    being allocated then.

    Args:
        steps: local steps, numbered from 0.
        path: of the trace; ends in .json.gz, and its directory is made.
        device: that the rank trains on.
    """

    def __init__(self, steps: range, path: Path, device: torch.device) -> None:
        import torch  # not before: programs that only check options need none

        self._steps = steps
        self._path = path
        self._activities = [torch.profiler.ProfilerActivity.CPU]
        if device.type == "cuda":
            self._activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._running: torch.profiler.profile | None = None
        if steps:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else every start and stop is a line on stderr
            with self._profiler():  # the first start takes seconds, which are none of the steps'
                pass

    def before(self, step: int) -> None:
        """Start or end, if a local step that comes now is the one to do it at."""
        if self._running is not None and step not in self._steps:
            self.close()
        elif self._running is None and step in self._steps:
            self._running = self._profiler()
            self._running.start()

    def close(self) -> None:
        """Write what there is; a call without anything to write does nothing."""
        if self._running is None:
            return
        profiler, self._running = self._running, None
        profiler.stop()
        self._path.parent.mkdir(exist_ok=True)
        part = self._path.with_name(f"part-{self._path.name}")
        profiler.export_chrome_trace(str(part))
        part.replace(self._path)

    def _profiler(self) -> torch.profiler.profile:
        import torch
        from torch._C._profiler import _ExperimentalConfig

        return torch.profiler.profile(
            activities=self._activities, experimental_config=_ExperimentalConfig(profile_all_threads=True)
        )
