"""Trajectory logs in HDF5: a row per step and per exchange, and sketches and snapshots of states.

Importing the package does not import h5py, so that options of the logs can be checked without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsam_hpc.util.lazy import attach

if TYPE_CHECKING:
    from lsam_hpc.trajectory.earlier import Earlier
    from lsam_hpc.trajectory.log import RankLog
    from lsam_hpc.trajectory.merging import index, merge
    from lsam_hpc.trajectory.reader import Run
    from lsam_hpc.trajectory.sketch import CountSketch, layer_groups
    from lsam_hpc.trajectory.snapshot import Snapshots
    from lsam_hpc.trajectory.verification import verify
    from lsam_hpc.trajectory.writer import TrajectoryWriter

__all__ = [
    "CountSketch",
    "Earlier",
    "RankLog",
    "Run",
    "Snapshots",
    "TrajectoryWriter",
    "index",
    "layer_groups",
    "merge",
    "verify",
]
_HOMES = {
    "CountSketch": "sketch",
    "Earlier": "earlier",
    "RankLog": "log",
    "Run": "reader",
    "Snapshots": "snapshot",
    "TrajectoryWriter": "writer",
    "index": "merging",
    "layer_groups": "sketch",
    "merge": "merging",
    "verify": "verification",
}
__getattr__, __dir__ = attach(__name__, _HOMES)
