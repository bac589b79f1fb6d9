"""Where training went, seen in the landscape: surfaces, paths and trajectories, and files of other tools.

What needs torch is loaded when it is first used, so that logs can be read and exported without it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from lsam_hpc.landscape.andriushchenko2023 import sharpness
    from lsam_hpc.landscape.axes import Axes, random_axes, through
    from lsam_hpc.landscape.chains import Chains
    from lsam_hpc.landscape.cohen2021 import Edge, edge, snapshots
    from lsam_hpc.landscape.curvature import layers
    from lsam_hpc.landscape.meyer2021 import trace
    from lsam_hpc.landscape.objective import Objective, fixed_batches
    from lsam_hpc.landscape.path import barrier, curve, find_curve, lines
    from lsam_hpc.landscape.smoothing import smoothed
    from lsam_hpc.landscape.spectrum import eigenpairs
    from lsam_hpc.landscape.states import state
    from lsam_hpc.landscape.surface import Settings, scan
    from lsam_hpc.landscape.timeline import write_timeline
    from lsam_hpc.landscape.tracks import Tracks, from_sketches, from_snapshots
    from lsam_hpc.landscape.ubaru2017 import Density, density
    from lsam_hpc.landscape.vehtari2021 import mixing
    from lsam_hpc.landscape.verdicts import judge

# name -> module that is loaded for it
_HOMES = {
    **dict.fromkeys(("Objective", "fixed_batches"), "objective"),
    **dict.fromkeys(("Axes", "random_axes", "through"), "axes"),
    **dict.fromkeys(("Settings", "scan"), "surface"),
    **dict.fromkeys(("barrier", "curve", "find_curve", "lines"), "path"),
    **dict.fromkeys(("Tracks", "from_sketches", "from_snapshots"), "tracks"),
    "Chains": "chains",
    **dict.fromkeys(("Edge", "edge", "snapshots"), "cohen2021"),
    **dict.fromkeys(("Density", "density"), "ubaru2017"),
    "eigenpairs": "spectrum",
    "judge": "verdicts",
    "layers": "curvature",
    "mixing": "vehtari2021",
    "sharpness": "andriushchenko2023",
    "smoothed": "smoothing",
    "trace": "meyer2021",
    "write_timeline": "timeline",
    "state": "states",
}

__all__ = [
    "Axes",
    "Chains",
    "Density",
    "Directions",
    "Edge",
    "Objective",
    "Plane",
    "Projection",
    "Settings",
    "Surface",
    "Tracks",
    "barrier",
    "curve",
    "density",
    "edge",
    "eigenpairs",
    "find_curve",
    "fixed_batches",
    "from_sketches",
    "from_snapshots",
    "judge",
    "layers",
    "lines",
    "mixing",
    "plane",
    "random_axes",
    "read_directions",
    "read_projection",
    "read_surface",
    "scan",
    "sharpness",
    "smoothed",
    "snapshots",
    "state",
    "through",
    "trace",
    "write_directions",
    "write_projection",
    "write_surface",
    "write_timeline",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
