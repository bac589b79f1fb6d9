"""The run directory: its creation, and the logs that a run writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsam_hpc.util.lazy import attach

if TYPE_CHECKING:
    from lsam_hpc.rundir.own_loop import open_log

__all__ = ["open_log"]
__getattr__, __dir__ = attach(__name__, {"open_log": "own_loop"})
