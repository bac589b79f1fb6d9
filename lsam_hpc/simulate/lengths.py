"""Random step lengths, drawn for each rank."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from lsam_hpc.simulate.describe import Job
from lsam_hpc.simulate.fluid import Array

BLOCK = 64  # steps drawn at a time


def lengths(job: Job, ranks: range, seed: int) -> Iterator[tuple[Array, Array, Array]]:
    """Yield, for each step, every rank's seconds without and with a core, and of pauses after its two passes.

    Their shapes are (ranks,), (ranks,) and (2, ranks).

    A rank's draws depend neither on the number of other ranks nor on the groups.

    Args:
        job: the job.
        ranks: the ranks of one chain.
        seed: seed of the draws.
    """
    work_factors = job.factors if job.work_factors is None else job.work_factors
    idle = np.array([job.factors.get(r, 1.0) for r in ranks]) * (job.step - job.work)
    work = np.array([work_factors.get(r, 1.0) for r in ranks]) * job.work
    if job.distribution == "constant" and not math.isfinite(job.pause_every):
        while True:
            yield idle, work, np.zeros((2, len(ranks)))
    draws = [np.random.default_rng([seed % 2**64, rank]) for rank in ranks]
    while True:
        factor = np.stack([_factors(job, draw) for draw in draws], 1)
        passes = [[_pauses(job, draw, (idle + work)[i] / 2) for i, draw in enumerate(draws)] for _ in range(2)]
        for f, p in zip(factor, np.moveaxis(np.array(passes), 2, 0), strict=True):
            yield idle * f, work * f, p


def _factors(job: Job, draw: np.random.Generator) -> Array:
    """Return random factors with mean 1."""
    if job.distribution == "lognormal":
        return draw.lognormal(-(job.sigma**2) / 2, job.sigma, BLOCK)
    return draw.exponential(1.0, BLOCK) if job.distribution == "exponential" else np.ones(BLOCK)


def _pauses(job: Job, draw: np.random.Generator, seconds: float) -> Array:
    """Return the seconds of the random pauses in each of some passes.

    Args:
        job: the job.
        draw: draws them.
        seconds: that a pass takes without them.
    """
    if not math.isfinite(job.pause_every) or job.pause == 0:
        return np.zeros(BLOCK)
    count = draw.poisson(seconds / job.pause_every, BLOCK)
    return np.where(count > 0, draw.gamma(np.maximum(count, 1), job.pause), 0.0)
