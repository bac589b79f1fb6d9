"""The results of the analysis of a matrix's spectrum; torch is not needed."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.landscape.curvature.smoothed_density import Density

EIGENVALUES, TRACE, DENSITY = KINDS = ("eigenvalues", "trace", "density")
SMALLEST = "smallest"  # a further kind, of the Hessian only
WHOLE = "all"  # the layer of a whole matrix
ALL = "all"  # the samples that are not divided into classes


class Trace(NamedTuple):
    """An estimate of a trace."""

    value: float
    error: float  # standard error of the value; 0 if exact


class Spectrum(NamedTuple):
    """The spectrum of a matrix or a diagonal block; what was not asked for is empty or None."""

    values: NDArray[np.float64]
    vectors: NDArray[np.float32]
    trace: Trace | None
    density: Density | None
    smallest: NDArray[np.float64]

    @property
    def ratio(self) -> float:
        """The smallest eigenvalue divided by the largest, with the sign changed; NaN if one was not asked for."""
        if not (len(self.values) and len(self.smallest) and self.values[0]):
            return math.nan
        return -float(self.smallest[0] / self.values[0])
