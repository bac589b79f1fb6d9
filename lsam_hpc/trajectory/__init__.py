"""Trajectory logs in HDF5: what a run did, step by step and exchange by exchange."""

from lsam_hpc.trajectory.earlier import Earlier
from lsam_hpc.trajectory.log import RankLog
from lsam_hpc.trajectory.merge import index, merge
from lsam_hpc.trajectory.reader import Run
from lsam_hpc.trajectory.sketch import CountSketch, layer_groups
from lsam_hpc.trajectory.snapshot import Snapshots
from lsam_hpc.trajectory.verify import verify
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
