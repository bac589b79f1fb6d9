"""Monte Carlo estimates of the smoothed loss F(y) that LSAM descends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from lsam_hpc.errors import InputError


class Smoothed(NamedTuple):
    """An estimate of F(y).

    Attributes:
        value: the estimate, in units of the loss. By Jensen's inequality its mean is never below F.
        error: its standard error, to first order; unreliable if the effective sample size is small.
        effective: effective sample size (sum w)^2 / sum w^2 of the weights w, from 1 to the number of samples.
    """

    value: float
    error: float
    effective: float


def smoothed(
    f: Callable[[Tensor], float], y: Tensor, temperature: float, stiffness: float, samples: int = 16, *, seed: int = 0
) -> Smoothed:
    """Estimate F(y) = -T log E[exp(-f(x) / T)], x ~ N(y, T / lambda I).

    F equals -T log pi_LSAM(y) up to a constant. The Gaussian kernel is normalised, so that F = f where f is constant.
    The normal numbers are the same for every y (common random numbers), so that differences between points are far
    more exact than the values.

    Args:
        f: the function to smooth, f_SAM for LSAM.
        y: the point, shape (P,).
        temperature: T, above 0, in units of the loss.
        stiffness: lambda, above 0.
        samples: number of samples, 2 or more. Default: 16.
        seed: of the normal numbers.

    Raises:
        InputError: a number is out of range.

    Source: Teng and Zhang 2025 (arXiv 2509.03110), pi_LSAM.
    """
    for name, value in (("temperature", temperature), ("stiffness", stiffness)):
        if not 0 < value < math.inf:
            raise InputError(f"{name}: expected a number > 0 for the smoothed loss, found {value}")
    if samples < 2:
        raise InputError(f"samples: expected 2 or more, found {samples}")
    width = math.sqrt(temperature / stiffness)
    return log_mean_exp([f(y + width * normal(y, seed, i)) for i in range(samples)], temperature)


def normal(like: Tensor, seed: int, index: int) -> Tensor:
    """Return independent standard normal numbers, the same on every machine.

    Args:
        like: gives their number, type and device.
        seed: common to all samples.
        index: number of the sample.
    """
    generator = np.random.Generator(np.random.Philox([seed, index]))
    dtype = np.float64 if like.dtype == torch.float64 else np.float32
    return torch.from_numpy(generator.standard_normal(like.numel(), dtype)).to(like)


def log_mean_exp(values: ArrayLike, temperature: float) -> Smoothed:
    """Return -T log mean exp(-v / T) of independent values, with its standard error by the delta method.

    Args:
        values: shape (samples,). A value of +inf has weight 0; if one is NaN, the result is NaN.
        temperature: T.
    """
    v = np.asarray(values, np.float64)
    least = float(v.min())
    if not math.isfinite(least):
        return Smoothed(least, math.nan, math.nan)
    weights = np.exp(-(v - least) / temperature)
    mean = float(weights.mean())
    error = temperature * float(weights.std(ddof=1)) / (math.sqrt(len(v)) * mean)
    return Smoothed(least - temperature * math.log(mean), error, float(weights.sum() ** 2 / (weights**2).sum()))
