"""The rows of an earlier attempt at the same run, for the log of the one that goes on from its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory.head import Head
from lsam_hpc.trajectory.log import RankLog
from lsam_hpc.trajectory.merge import BLOCK
from lsam_hpc.trajectory.snapshot import Snapshots
from lsam_hpc.trajectory.store import Table


@dataclass(frozen=True)
class Earlier:
    """What an earlier attempt logged, up to a checkpoint.

    Args:
        log: of the rank; opened with `partial`, damaged rows are left out.
        steps: local steps that the checkpoint holds; what was done after it is done again.
    """

    log: RankLog
    steps: int

    def check(self, head: Head, snapshots: Snapshots | None) -> None:
        """Raise InputError if rows of this log cannot stand beside those of a new one."""
        if self.log.head.layout != head.layout:
            raise InputError(f"{self.log.where}: expected the layout of this model, found another")
        if self.log.sketcher is not None and head.sketch is not None and self.log.sketcher != head.sketch:
            raise InputError(f"{self.log.where}: expected sketches as asked for now, found others: "
                             "keep the sketch options and the seed")  # fmt: skip

    def dropped(self) -> dict[str, int]:
        """Return how many rows, values and states were left out."""
        table = self.log.table("dropped")
        return {name: int(values[-1]) for name, values in table.items() if name != "time" and len(values)}

    def copy(self, tables: Mapping[str, Table], snapshots: Snapshots | None) -> None:
        """Add the rows to the tables of a new file."""
        there = self.log.tables
        for name, table in tables.items():
            if name not in there or name == "result":
                continue
            rows = self.log.table(name)
            if "iteration" not in rows:  # of what was left out
                table.extend(rows)
                continue
            # A step is the one after `iteration` steps; states are taken, and exchanges begun, when so many are done.
            kept = rows["iteration"] < self.steps + (name != "step")
            if "/" not in name:
                table.extend({column: values[kept] for column, values in rows.items()})
                continue
            encode = snapshots.encode if snapshots is not None and name.startswith("snapshot/") else np.asarray
            block = 1 if name.startswith("snapshot/") else BLOCK
            last = int(kept.sum())
            for at in range(0, last, block):
                part, values = self.log.values(name, slice(at, min(at + block, last)))
                table.extend({**part, "values": encode(values).reshape(values.shape)})
