"""Recommends options for a machine and a model from a small simulated grid."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from lsam_hpc.options.communication import WireDtype
from lsam_hpc.simulate.describe import Job, Machine
from lsam_hpc.simulate.result import Result, simulate

EFFICIENT = 0.95  # smallest acceptable rate, as a fraction of the sum of the ranks' own rates
EXCHANGES = 8  # per chain, in each simulation
PERIODS = (4, 8, 16, 32, 64, 128)
WAYS = 3  # of exchanging, at most, each with every period
CHEAPEST = PERIODS[0]  # the default of LSAM
PULL = 0.9  # divided by the number of chains, as EASGD does (Zhang et al. 2015, arXiv 1412.6651)


@dataclass(frozen=True)
class Advice:
    """Recommended options.

    Args:
        job: the job with the recommended options.
        result: its simulated result.
        pull: fraction of the gap to the center that an exchange closes.
        reasons: one sentence each, with numbers.
        tried: (job, result) of every simulation.
    """

    job: Job
    result: Result
    pull: float
    reasons: list[str]
    tried: list[tuple[Job, Result]]


def advise(job: Job, machine: Machine, seed: int = 0, show: Callable[[float], object] = lambda _: None) -> Advice:
    """Return the options with the smallest period at which exchanges cost at most 5 % of the ranks' own rates.

    The first candidate has one chain per rank and a float32 wire. If it needs a period above 4, a 16-bit wire and one
    chain per node are simulated too. The smallest period wins; at equal periods the earlier candidate does. With
    `fully_shard` all candidates have the job's groups.

    Args:
        job: its ranks, parameters, steps and shards are used; its other options are ignored.
        machine: the machine to simulate.
        seed: seed of the random step lengths.
        show: called with the part that is done, from 0 to 1, if all simulations are needed. Default: does nothing.
    """

    def shown(part: float) -> None:
        show((len(tried) + part) / (WAYS * len(PERIODS)))

    sharded = job.part  # ranks of a chain that hold a shard each
    plain = replace(
        job, period=CHEAPEST, wire_dtype="float32", group_size=sharded, topology="center", coupling="elastic"
    )
    tried: list[tuple[Job, Result]] = []
    baseline = _smallest(plain, machine, seed, tried, shown)
    chains = "each rank a chain" if sharded == 1 else f"chains of {sharded} ranks that hold a shard each"
    reasons = [_why(baseline, f"{chains}, float32 on the wire")]
    best = baseline
    if best[0].period > CHEAPEST or best[1].efficiency < EFFICIENT:
        size = math.gcd(machine.ranks_per_node, job.ranks)
        half: WireDtype = "bfloat16"
        ways = [(f"{half} on the wire", replace(plain, wire_dtype=half))] if baseline[1].nodes > 1 else []
        if size > 1 and sharded == 1:
            ways.append((f"groups of {size} ranks", replace(plain, group_size=size)))
        for name, way in ways:
            other = _smallest(way, machine, seed, tried, shown)
            reasons.append(_why(other, name))
            if (other[1].efficiency >= EFFICIENT, -other[0].period) > (
                best[1].efficiency >= EFFICIENT,
                -best[0].period,
            ):
                best = other
    chosen, result = best
    pull = PULL / chosen.chains
    reasons.append(
        f"pull {pull:.3g}: 0.9 / {chosen.chains} chains, so that the pulls of all chains together move the center by "
        "0.9 of the gap in a period"
    )
    if result.exchanges:
        share = result.staleness.mean / chosen.chains
        reasons.append(
            f"staleness {result.staleness.mean:.3g} updates on average, {share:.2g} of a round of all chains: "
            + ("low" if share < 0.5 else "high: an exchange takes much of a period, compare with twice the period")
        )
    return Advice(chosen, result, pull, reasons, tried)


def _smallest(
    job: Job, machine: Machine, seed: int, tried: list[tuple[Job, Result]], show: Callable[[float], object]
) -> tuple[Job, Result]:
    """Return the smallest period that is efficient enough, or else the most efficient one."""
    best: tuple[Job, Result] | None = None
    for period in PERIODS:
        way = replace(job, period=period)
        result = simulate(way, machine, seed=seed, exchanges=EXCHANGES, show=show)
        tried.append((way, result))
        if result.efficiency >= EFFICIENT:
            return way, result
        if best is None or result.efficiency > best[1].efficiency:
            best = (way, result)
    assert best is not None
    return best


def _why(candidate: tuple[Job, Result], name: str) -> str:
    job, result = candidate
    return (
        f"{name}: period {job.period} keeps {100 * result.efficiency:.1f} % of the ranks' own rates; an exchange takes "
        f"{result.exchange.mean:.3g} s of the {job.period * job.step:.3g} s of its steps, the busiest link is "
        f"{100 * result.link_used:.0f} % full"
    )
