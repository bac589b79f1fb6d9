"""Where training went, seen in the landscape: planes through a run's states, and files of other tools."""

from lsam_hpc.landscape.li2018 import (
    Directions,
    Projection,
    Surface,
    read_directions,
    read_projection,
    read_surface,
    write_directions,
    write_projection,
    write_surface,
)
from lsam_hpc.landscape.projection import Plane, plane

__all__ = [
    "Directions",
    "Plane",
    "Projection",
    "Surface",
    "plane",
    "read_directions",
    "read_projection",
    "read_surface",
    "write_directions",
    "write_projection",
    "write_surface",
]
