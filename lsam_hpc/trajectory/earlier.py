"""Copies the rows of an earlier attempt at the same run into the log of the attempt that resumes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory.head import Head
from lsam_hpc.trajectory.log import RankLog
from lsam_hpc.trajectory.merging import BLOCK
from lsam_hpc.trajectory.snapshot import Snapshots
from lsam_hpc.trajectory.store import Table


@dataclass(frozen=True)
class Earlier:
    """The log of an earlier attempt, up to a checkpoint.

    Args:
        log: the rank's log; if it was opened with `partial`, damaged rows are left out.
        steps: local steps at the checkpoint; later steps are repeated, so their rows are not copied.
    """

    log: RankLog
    steps: int

    def check(self, head: Head, snapshots: Snapshots | None) -> None:
        """Raise InputError if rows of this log cannot be in one file with those of a new log."""
        if self.log.head.layout != head.layout:
            raise InputError(f"{self.log.where}: expected the layout of this model, found another")
        if self.log.sketcher is not None and head.sketch is not None and self.log.sketcher != head.sketch:
            raise InputError(
                f"{self.log.where}: expected sketches made with the present options, found others: "
                "keep the sketch options and the seed"
            )

    def dropped(self) -> dict[str, int]:
        """Return how many rows, optional values and states the earlier attempt dropped."""
        table = self.log.table("dropped")
        return {name: int(values[-1]) for name, values in table.items() if name != "time" and len(values)}

    def copy(self, tables: Mapping[str, Table], snapshots: Snapshots | None) -> None:
        """Add the rows to the tables of a new file."""
        logged = self.log.tables
        for name, table in tables.items():
            if name not in logged or name == "result":
                continue
            rows = self.log.table(name)
            if "iteration" not in rows:  # the table of dropped rows
                table.extend(rows)
                continue
            # The step of iteration i is done after i + 1 steps; a state or exchange of iteration i begins after i.
            selected = rows["iteration"] < self.steps + (name != "step")
            if "/" not in name:
                table.extend({column: values[selected] for column, values in rows.items()})
                continue
            encode = snapshots.encode if snapshots is not None and name.startswith("snapshot/") else np.asarray
            block = 1 if name.startswith("snapshot/") else BLOCK
            last = int(selected.sum())
            for at in range(0, last, block):
                part, values = self.log.values(name, slice(at, min(at + block, last)))
                table.extend({**part, "values": encode(values).reshape(values.shape)})
