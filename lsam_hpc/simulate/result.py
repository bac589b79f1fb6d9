"""Results of a simulated run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lsam_hpc.errors import InputError
from lsam_hpc.simulate import costs as cost
from lsam_hpc.simulate.describe import Job, Machine
from lsam_hpc.simulate.model import Chain, Model

EXCHANGES = 20  # per chain, if neither a time nor a number of steps is given
STEPS = 200  # the same for a job without exchanges


@dataclass(frozen=True)
class Spread:
    """Mean, quantiles and maximum of some values; NaN without values."""

    mean: float
    median: float
    high: float  # 95 % quantile
    most: float

    @staticmethod
    def of(values: ArrayLike) -> Spread:
        """Return the spread of some values."""
        numbers = np.asarray(values, float)
        if not numbers.size:
            return Spread(math.nan, math.nan, math.nan, math.nan)
        median, high = np.quantile(numbers, (0.5, 0.95))
        return Spread(float(numbers.mean()), float(median), float(high), float(numbers.max()))


@dataclass(frozen=True)
class Result:
    """Results of a simulated run; rates are steps per second, and a step of a group counts for each of its ranks.

    Args:
        ranks: R.
        nodes: N.
        seconds: simulated time.
        rate: rate of all ranks together.
        rank_rate: spread of the rates of the ranks.
        slowest: rate of the slowest chain.
        own: sum of the rates that the ranks would have alone.
        exchanges: number of exchanges that ended.
        staleness: center versions that others added between an exchange's read and its add.
        histogram: number of exchanges with staleness 0, 1, 2, ...
        exchange: seconds of an exchange.
        alone: seconds of an exchange on an idle machine, on the node where it takes longest.
        delay: local steps between a staging and its result.
        held: seconds per step that the training thread is held up, waits included.
        waited: part of `held` spent waiting for exchanges to end.
        exchange_bytes: bytes that a rank reads and adds in an exchange.
        group_bytes: bytes that a rank sends to the other ranks of its group in a step.
        rank_bytes: bytes of vectors that a rank holds, see `Costs.rank_bytes`.
        busiest_link: bytes per second through the busiest network card, in its busier direction.
        link_used: the same as a fraction of the card's bandwidth.
        busiest_node: bytes per second that the busiest node's memory serves.
        memory_used: the same as a fraction of its bandwidth.
    """

    ranks: int
    nodes: int
    seconds: float
    rate: float
    rank_rate: Spread
    slowest: float
    own: float
    exchanges: int
    staleness: Spread
    histogram: tuple[int, ...]
    exchange: Spread
    alone: float
    delay: Spread
    held: float
    waited: float
    exchange_bytes: float
    group_bytes: float
    rank_bytes: float
    busiest_link: float
    link_used: float
    busiest_node: float
    memory_used: float

    @property
    def efficiency(self) -> float:
        """Rate as a fraction of the sum of the ranks' own rates."""
        return self.rate / self.own


def simulate(
    job: Job,
    machine: Machine,
    seconds: float | None = None,
    steps: int | None = None,
    seed: int = 0,
    *,
    exchanges: int = EXCHANGES,
    show: Callable[[float], object] | None = None,
) -> Result:
    """Simulate a job on a machine.

    Args:
        job: the job to simulate.
        machine: the machine that it runs on.
        seconds: simulated time. Default: long enough for `exchanges`, or for 200 steps without exchanges.
        steps: steps of all ranks together after which to stop. Default: no limit.
        seed: seed of the random step lengths.
        exchanges: exchanges of a median chain, if neither `seconds` nor `steps` is given. Default 20.
        show: called with the part that is done, from 0 to 1. Default: none.

    Raises:
        InputError: a number is out of its range, or the time is too short for a step.
    """
    model = Model(job, machine, seed)
    usual = job.step * float(np.median([_factor(job, r) for r in range(job.ranks)]))
    limit = seconds
    if limit is None and steps is None:
        limit = exchanges * max(usual * job.period, alone(model)) if job.period else STEPS * usual
    model.run(math.inf if limit is None else limit, steps, show)
    return result(model)


def result(model: Model) -> Result:
    """Return the results of a simulation so far."""
    job, costs, now = model.job, model.costs, model.env.now
    chains = model.chains
    if not any(c.steps for c in chains):
        raise InputError(f"seconds: expected at least one step ({job.step:g} s), found {now:g}")
    rates = np.array([_rate(c) for c in chains])
    staleness = np.concatenate([np.array(c.staleness, int) for c in chains])
    steps = sum(c.steps for c in chains)
    cards, memory = _traffic(model)
    capacity = costs.capacity
    return Result(
        ranks=job.ranks,
        nodes=costs.nodes,
        seconds=now,
        rate=float(rates.sum()) * job.group_size,
        rank_rate=Spread.of(rates),
        slowest=float(rates.min()),
        own=own_rate(job),
        exchanges=len(staleness),
        staleness=Spread.of(staleness),
        histogram=tuple(np.bincount(staleness).tolist()),
        exchange=Spread.of(np.concatenate([c.seconds for c in chains])),
        alone=alone(model),
        delay=Spread.of(np.concatenate([c.delays for c in chains])),
        held=sum(c.held for c in chains) / steps,
        waited=sum(c.waited for c in chains) / steps,
        exchange_bytes=costs.exchange_bytes() if job.period else 0.0,
        group_bytes=costs.group_bytes(),
        rank_bytes=costs.rank_bytes(),
        busiest_link=cards / now,
        link_used=cards / now / float(capacity[cost.OUT]),
        busiest_node=memory / now,
        memory_used=memory / now / float(capacity[cost.MEMORY]),
    )


def own_rate(job: Job) -> float:
    """Return the steps per second of all ranks, each alone on its node and without exchanges."""
    return sum(1 / (job.step * _factor(job, rank) + _paused(job, rank)) for rank in range(job.ranks))


def alone(model: Model) -> float:
    """Return the seconds of an exchange on an idle machine, on the node where it takes longest."""
    if not model.job.period:
        return math.nan
    seconds = model.costs.seconds
    parts = seconds[:, cost.READ] + seconds[:, cost.COMPUTE] + seconds[:, cost.ADD] + 2 * seconds[:, cost.PASS_ON]
    return float(parts.max())


def _factor(job: Job, rank: int) -> float:
    """Return the factor by which a rank's steps are longer than `step`."""
    factor = job.factors.get(rank, 1.0)
    work = factor if job.work_factors is None else job.work_factors.get(rank, 1.0)
    return (factor * (job.step - job.work) + work * job.work) / job.step


def _paused(job: Job, rank: int) -> float:
    return job.step * _factor(job, rank) / job.pause_every * job.pause


def _rate(chain: Chain) -> float:
    """Return a chain's steps per second; between stagings, if there are enough, to count whole periods only."""
    if len(chain.marks) > 2:
        (first, before), (last, after) = chain.marks[0], chain.marks[-1]
        return (after - before) / (last - first)
    return chain.steps / chain.ended if chain.steps else 0.0


def _traffic(model: Model) -> tuple[float, float]:
    """Return the bytes through the busiest card in its busier direction, and through the busiest node's memory."""
    costs, done = model.costs, model.fluid.done.astype(float)
    out = np.einsum("nk,nkw->nw", done, costs.reached)
    cards = np.einsum("nk,nkw->nw", done, costs.moved) + costs.weights[:, None] * (out.sum(0) - out)
    seconds = done * costs.seconds
    near = np.einsum("nk,nk->n", seconds, costs.own[:, :, cost.MEMORY])
    far = np.einsum("nk,nk->n", seconds, costs.far[:, :, cost.MEMORY])
    return float(cards.max()), float((near + costs.weights * (far.sum() - far)).max())
