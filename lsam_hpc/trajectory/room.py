"""Decides whether a log may grow: disk space is left for checkpoints, and the log is below its limit."""

from __future__ import annotations

import os
import resource
from pathlib import Path

AGAIN = 1.25  # a log that stopped goes on when so many times the reserve is free


class Room:
    """The room of a log on its disk.

    Args:
        path: of the log.
        reserve: free space to leave to other files, B; 0: none.
        limit: largest size of the log without its snapshots, B; None: no limit.
    """

    def __init__(self, path: Path, reserve: int, limit: int | None) -> None:
        self.reason = ""  # why nothing may be written, "" if it may
        self._large = False
        self._folder, self._reserve, self._limit = path.parent, reserve, limit

    def holds_back(self, table: str) -> bool:
        """Return whether a table's rows are not to be written."""
        spared = table in ("result", "dropped") or (self._large and table.startswith("snapshot/"))
        return bool(self.reason) and not spared

    def free(self) -> int | None:
        """Return the free bytes of the disk; None if they are unknown."""
        try:
            status = os.statvfs(self._folder)
        except OSError:
            return None
        return status.f_bavail * status.f_frsize

    def fits(self, size: int) -> bool:
        """Return whether a new file fits on the disk beside the reserve, and may grow (`ulimit -f`).

        Args:
            size: of the file, B.
        """
        free, largest = self.free(), resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        if largest != resource.RLIM_INFINITY and AGAIN * size > largest:
            return False
        return free is None or free >= size + AGAIN * self._reserve

    def check(self, size: int) -> bool:
        """Set `reason`; return whether it has changed.

        Args:
            size: of the log without its snapshots, B.
        """
        before, self.reason = self.reason, ""
        self._large = self._limit is not None and size >= self._limit
        if self._large and self._limit is not None:
            self.reason = f"it has its largest size of {self._limit / 1e6:.1f} MB"
        elif self._reserve:
            least = self._reserve * (AGAIN if before else 1)
            free = self.free()
            if free is not None and free < least:
                # The same text until there is room again.
                self.reason = before or f"the disk has less than {self._reserve / 1e6:.1f} MB left for checkpoints"
        return bool(self.reason) != bool(before)
