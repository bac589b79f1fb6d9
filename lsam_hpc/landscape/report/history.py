"""A curve of any length in bounded memory: equal numbers of successive rows become one bucket."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


class History:
    """The mean, smallest and largest value of buckets of successive rows.

    Bucket k holds the rows k * width to (k + 1) * width - 1. When the buckets are full, pairs of them become one and
    the width doubles, so the result does not depend on how the rows arrived. Values that are not finite are left out.

    Args:
        buckets: largest number of buckets, even. Default 256.
    """

    def __init__(self, buckets: int = 256) -> None:
        self.rows = 0  # added so far
        self.width = 1  # rows per bucket
        self._size = buckets
        self._sums = np.zeros((4, buckets))  # of rows, x, finite values, and their number
        self._low = np.full(buckets, np.nan)
        self._high = np.full(buckets, np.nan)

    def add(self, x: NDArray[Any], y: NDArray[Any]) -> None:
        """Add rows.

        Args:
            x: the abscissa of each row, finite; shape (rows,).
            y: the value of each row, shape (rows,).
        """
        if not len(x):
            return
        while (self.rows + len(x) - 1) // self.width >= self._size:
            self._halve()
        at = np.arange(self.rows, self.rows + len(x)) // self.width
        finite = np.isfinite(y)
        values = np.where(finite, y, np.nan).astype(np.float64)
        terms = (np.ones(len(x)), x, np.where(finite, values, 0.0), finite)
        for total, term in zip(self._sums, terms, strict=True):
            np.add.at(total, at, term)
        np.fmin.at(self._low, at, values)
        np.fmax.at(self._high, at, values)
        self.rows += len(x)

    def curve(self) -> tuple[Values, Values, Values, Values]:
        """Return of each bucket with a row: mean abscissa, mean, smallest and largest value; NaN: no finite value."""
        count = -(-self.rows // self.width)
        rows, x, y, finite = self._sums[:, :count]
        mean = np.divide(y, finite, out=np.full(count, np.nan), where=finite > 0)
        return x / rows, mean, self._low[:count].copy(), self._high[:count].copy()

    def _halve(self) -> None:
        half = self._size // 2
        self._sums = np.concatenate([self._sums.reshape(4, half, 2).sum(2), np.zeros((4, half))], 1)
        none = np.full(half, np.nan)
        self._low = np.concatenate([np.fmin(self._low[::2], self._low[1::2]), none])
        self._high = np.concatenate([np.fmax(self._high[::2], self._high[1::2]), none])
        self.width *= 2
