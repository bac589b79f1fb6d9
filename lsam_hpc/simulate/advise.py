"""Which options suit a machine and a model: a small grid, simulated."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lsam_hpc.simulate.describe import Job, Machine, Wire
from lsam_hpc.simulate.result import Result, simulate

EFFICIENT = 0.95  # of the ranks' own rates
EXCHANGES = 8  # of a chain, simulated for each set-up
PERIODS = (4, 8, 16, 32, 64, 128)
CHEAPEST = PERIODS[0]  # the default of LSAM
PULL = 0.9  # divided by the number of chains, as EASGD does (Zhang et al. 2015, arXiv 1412.6651)


@dataclass(frozen=True)
class Advice:
    """What to set.

    Args:
        job: with the options.
        result: of simulating it.
        pull: fraction of the gap.
        reasons: a sentence each, with numbers.
        tried: (job, result) of all that was simulated.
    """

    job: Job
    result: Result
    pull: float
    reasons: list[str]
    tried: list[tuple[Job, Result]]


def advise(job: Job, machine: Machine, seed: int = 0) -> Advice:
    """Return the options that keep ranks at work with the fewest steps between exchanges.

    First the smallest period from 4 on that keeps 95 % of the ranks' own rates, each rank a chain and float32 on the
    wire; then, where more than 4 steps are needed, the same with 16 bits and with a chain per node; the smallest period
    wins, and at the same period the plainer set-up does.

    Args:
        job: its ranks, parameters and steps; its options are not looked at.
        machine: where.
        seed: of the random lengths.
    """
    plain = replace(job, period=CHEAPEST, wire_dtype="float32", group_size=1, topology="center", coupling="elastic")
    tried: list[tuple[Job, Result]] = []
    found = _smallest(plain, machine, seed, tried)
    reasons = [_why(found, "each rank a chain, float32 on the wire")]
    best = found
    if best[0].period > CHEAPEST or best[1].efficiency < EFFICIENT:
        size = math.gcd(machine.ranks_per_node, job.ranks)
        half: Wire = "bfloat16"
        ways = [(f"{half} on the wire", replace(plain, wire_dtype=half))] if found[1].nodes > 1 else []
        if size > 1:
            ways.append((f"groups of {size} ranks", replace(plain, group_size=size)))
        for name, way in ways:
            other = _smallest(way, machine, seed, tried)
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
        part = result.staleness.mean / chosen.chains
        reasons.append(
            f"staleness {result.staleness.mean:.3g} updates on average, {part:.2g} of a round of all chains: "
            + ("low" if part < 0.5 else "high: an exchange takes much of a period, compare --period with twice as much")
        )
    return Advice(chosen, result, pull, reasons, tried)


def _smallest(job: Job, machine: Machine, seed: int, tried: list[tuple[Job, Result]]) -> tuple[Job, Result]:
    """Return the smallest period that is efficient, or else the most efficient one."""
    best: tuple[Job, Result] | None = None
    for period in PERIODS:
        way = replace(job, period=period)
        result = simulate(way, machine, seed=seed, exchanges=EXCHANGES)
        tried.append((way, result))
        if result.efficiency >= EFFICIENT:
            return way, result
        if best is None or result.efficiency > best[1].efficiency:
            best = (way, result)
    assert best is not None
    return best


def _why(found: tuple[Job, Result], name: str) -> str:
    job, result = found
    return (
        f"{name}: period {job.period} keeps {100 * result.efficiency:.1f} % of the ranks' own rates; an exchange takes "
        f"{result.exchange.mean:.3g} s of the {job.period * job.step:.3g} s of its steps, the busiest link is "
        f"{100 * result.link_used:.0f} % full"
    )
