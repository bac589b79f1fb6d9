"""The density of a matrix's eigenvalues, smoothed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

WIDTH = 0.01  # standard deviation of the smoothing kernel / range of the eigenvalues


@dataclass(frozen=True)
class Density:
    """A spectral density: the share of a matrix's eigenvalues at each node.

    Args:
        nodes: eigenvalues, ascending, shape (n,).
        weights: share of the eigenvalues at each node, shape (n,); the sum is 1.
    """

    nodes: NDArray[np.float64]
    weights: NDArray[np.float64]

    @property
    def width(self) -> float:
        """Default standard deviation of the smoothing kernel: `WIDTH` times the range."""
        scale = max(abs(self.nodes[0]), abs(self.nodes[-1]), 1e-30)
        return WIDTH * max(float(self.nodes[-1] - self.nodes[0]), 1e-3 * float(scale))

    def grid(self, points: int = 1024) -> NDArray[np.float64]:
        """Return eigenvalues that cover the smoothed density, shape (points,)."""
        return np.linspace(self.nodes[0] - 5 * self.width, self.nodes[-1] + 5 * self.width, points)

    def smoothed(self, at: NDArray[np.float64], width: float | None = None) -> NDArray[np.float64]:
        """Return the density, smoothed with a Gaussian kernel; its integral is 1.

        Args:
            at: eigenvalues, shape (m,).
            width: standard deviation. Default: `self.width`.
        """
        sigma = width or self.width
        z = (at[:, None] - self.nodes) / sigma
        smooth: NDArray[np.float64] = np.exp(-(z**2) / 2) @ self.weights / (sigma * np.sqrt(2 * np.pi))
        return smooth
