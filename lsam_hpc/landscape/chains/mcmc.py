"""R-hat, effective sample size and autocorrelation of chains, by ArviZ.

Source: Vehtari, Gelman, Simpson, Carpenter and Buerkner 2021, "Rank-Normalization, Folding, and Localization: An
Improved R-hat for Assessing Convergence of MCMC" (arXiv 1903.08008).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.packages import package

MIN_DRAWS = 20  # per chain, so that the halves that R-hat compares have a mean and a variance


class Mixing(NamedTuple):
    """How well the chains of one quantity mix."""

    rhat: float  # rank-normalised split R-hat: 1 where the chains agree
    drift: float  # the largest R-hat of one chain's own halves: above 1 where a chain still moves
    ess: float  # effective sample size for the mean, of all chains together
    ess_bulk: float  # for the bulk of the distribution: of the rank-normalised draws in half chains
    ess_tail: float  # for its tails: the smaller one of those for the 5 % and the 95 % quantile
    tau: float  # integrated autocorrelation time in draws: number of draws / ess


def mixing(draws: NDArray[np.floating[Any]]) -> Mixing:
    """Return R-hat, effective sample sizes and autocorrelation time of a quantity.

    R-hat compares the variance between half chains with that within them. It is defined for one chain too, but then
    shows only whether that chain still moves. All values are NaN for a quantity that never changes.

    Args:
        draws: shape (chains, n), n evenly spaced draws of each chain.

    Raises:
        InputError: ArviZ is missing, there are fewer than `MIN_DRAWS` draws, or one is not finite.
    """
    if draws.ndim != 2 or draws.shape[1] < MIN_DRAWS:
        raise InputError(f"chains: expected {MIN_DRAWS} draws of each or more, found shape {draws.shape}")
    if not np.isfinite(draws).all():
        raise InputError(f"chains: expected finite draws, found {np.count_nonzero(~np.isfinite(draws))} that are not")
    if np.ptp(draws) == 0:
        return Mixing(*[np.nan] * len(Mixing._fields))
    az = package("arviz", "diagnose")
    values = draws.astype(np.float64)
    halves = [_halves(chain) for chain in values]
    with np.errstate(divide="ignore", invalid="ignore"):  # of a half that never changes R-hat is infinite or NaN
        drift = max(float(az.rhat(pair)) for pair in halves)
        rhat = float(az.rhat(values)) if len(values) > 1 else drift
        ess, bulk, tail = (float(az.ess(values, method=kind)) for kind in ("mean", "bulk", "tail"))
    return Mixing(rhat, drift, ess, bulk, tail, values.size / ess)


def autocorrelation(draws: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return the autocorrelation of a chain at each lag, or the mean over chains, shape (n,).

    Args:
        draws: shape (n,) or (chains, n).

    Raises:
        InputError: ArviZ is missing.
    """
    mean: NDArray[np.float64] = (
        package("arviz", "diagnose").autocorr(np.atleast_2d(draws).astype(np.float64), axis=-1).mean(0)
    )
    return mean


def _halves(chain: NDArray[np.float64]) -> NDArray[np.float64]:
    half = len(chain) // 2
    return np.stack([chain[:half], chain[-half:]])
