"""Loss landscapes: surfaces, paths, trajectories, curvature and chain statistics of runs, and other tools' files.

Modules that need torch are imported on first use, so that logs can be read and exported without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsam_hpc.landscape.formats.loss_landscape import (
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
from lsam_hpc.landscape.geometry.projection import Plane, plane
from lsam_hpc.util.lazy import attach

if TYPE_CHECKING:
    from lsam_hpc.landscape.chains.diagnosis import diagnose
    from lsam_hpc.landscape.chains.learning_coefficient import LearningCoefficient, learning_coefficient
    from lsam_hpc.landscape.chains.mcmc import mixing
    from lsam_hpc.landscape.chains.statistics import Chains
    from lsam_hpc.landscape.chains.timeline import write_timeline
    from lsam_hpc.landscape.curvature.directional import directional_sharpness
    from lsam_hpc.landscape.curvature.edge_of_stability import Edge, Limits, edge, snapshots
    from lsam_hpc.landscape.curvature.gradient_flow import gradient_flow
    from lsam_hpc.landscape.curvature.opposing_signals import Outliers, outliers
    from lsam_hpc.landscape.curvature.products import layers
    from lsam_hpc.landscape.curvature.sharpness import sharpness
    from lsam_hpc.landscape.curvature.spectral_density import Density, density
    from lsam_hpc.landscape.curvature.spectrum import eigenpairs
    from lsam_hpc.landscape.curvature.trace import trace
    from lsam_hpc.landscape.geometry.axes import Axes, random_axes, through
    from lsam_hpc.landscape.geometry.path import barrier, curve, find_curve, lines
    from lsam_hpc.landscape.geometry.persistence import Basin, basins
    from lsam_hpc.landscape.geometry.smoothing import smoothed
    from lsam_hpc.landscape.geometry.surface import Settings, scan
    from lsam_hpc.landscape.geometry.tracks import Tracks, from_sketches, from_snapshots
    from lsam_hpc.landscape.objective import Objective, fixed_batches
    from lsam_hpc.landscape.prediction.calibration import Scores, scores
    from lsam_hpc.landscape.prediction.ensembles import probabilities
    from lsam_hpc.landscape.states import state

# public name -> submodule that defines it, imported on first use
_HOMES = {
    **dict.fromkeys(("Objective", "fixed_batches"), "objective"),
    **dict.fromkeys(("Axes", "random_axes", "through"), "geometry.axes"),
    **dict.fromkeys(("Settings", "scan"), "geometry.surface"),
    **dict.fromkeys(("Basin", "basins"), "geometry.persistence"),
    **dict.fromkeys(("barrier", "curve", "find_curve", "lines"), "geometry.path"),
    **dict.fromkeys(("Tracks", "from_sketches", "from_snapshots"), "geometry.tracks"),
    "Chains": "chains.statistics",
    **dict.fromkeys(("Edge", "Limits", "edge", "snapshots"), "curvature.edge_of_stability"),
    **dict.fromkeys(("Density", "density"), "curvature.spectral_density"),
    "directional_sharpness": "curvature.directional",
    "eigenpairs": "curvature.spectrum",
    "diagnose": "chains.diagnosis",
    "gradient_flow": "curvature.gradient_flow",
    "layers": "curvature.products",
    **dict.fromkeys(("LearningCoefficient", "learning_coefficient"), "chains.learning_coefficient"),
    "mixing": "chains.mcmc",
    **dict.fromkeys(("Outliers", "outliers"), "curvature.opposing_signals"),
    "probabilities": "prediction.ensembles",
    **dict.fromkeys(("Scores", "scores"), "prediction.calibration"),
    "sharpness": "curvature.sharpness",
    "smoothed": "geometry.smoothing",
    "trace": "curvature.trace",
    "write_timeline": "chains.timeline",
    "state": "states",
}

__all__ = [
    "Axes",
    "Basin",
    "Chains",
    "Density",
    "Directions",
    "Edge",
    "LearningCoefficient",
    "Limits",
    "Objective",
    "Outliers",
    "Plane",
    "Projection",
    "Scores",
    "Settings",
    "Surface",
    "Tracks",
    "barrier",
    "basins",
    "curve",
    "density",
    "diagnose",
    "directional_sharpness",
    "edge",
    "eigenpairs",
    "find_curve",
    "fixed_batches",
    "from_sketches",
    "from_snapshots",
    "gradient_flow",
    "layers",
    "learning_coefficient",
    "lines",
    "mixing",
    "outliers",
    "plane",
    "probabilities",
    "random_axes",
    "read_directions",
    "read_projection",
    "read_surface",
    "scan",
    "scores",
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
__getattr__, __dir__ = attach(__name__, _HOMES)
