"""Checks of a run's chains: each compares one number with a threshold and says what to change."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lsam_hpc.landscape.chains.mcmc import MIN_DRAWS
from lsam_hpc.landscape.chains.statistics import Chains, Quantity

RHAT = 1.01  # Vehtari et al. 2021, section 4
DRIFT = 1.05  # R-hat of a chain's own halves that noise alone hardly reaches
ESS = 100  # independent draws per chain, bulk and tail; Vehtari et al. 2021, section 4, 50 per half chain
WARM = 1.1  # measured distance / the kernel's; curvature can only make it smaller
STALE = 2.0  # updates by others, in rounds of all others
BLOCKED = 0.1  # share of a rank's time
SLOW = 0.5  # share of the median rate
REJECTED = 0.01  # share of exchanges


@dataclass(frozen=True)
class CheckResult:
    """The result of one check.

    Args:
        name: of the check.
        good: True if the number is within the threshold; None if there is no data to judge by.
        value: the number.
        threshold: its bound; NaN where there is none.
        text: the result in words and, unless it is good, what to change.
    """

    name: str
    good: bool | None
    value: float
    threshold: float
    text: str


def diagnose(chains: Chains) -> list[CheckResult]:
    """Return the results of all checks: first those of the samples, then those of the machine."""
    return [
        _agreement(chains),
        _draws(chains),
        _temperature(chains),
        _staleness(chains),
        _waits(chains),
        _speed(chains),
        _lost_ranks(chains),
        _delta_filter(chains),
        _log(chains),
    ]


def are_samples(results: list[CheckResult]) -> bool:
    """Return whether the chains may be used as samples: they agree, and are long enough and not too warm."""
    return all(result.good is not False for result in results[:3]) and results[0].good is True


def _agreement(chains: Chains) -> CheckResult:
    known = [q for q in chains.quantities if not math.isnan(q.mixing.rhat)]
    if not known:
        text = "no quantity changes: the chains do not move; raise lr"
        return CheckResult("agreement", good=False, value=math.nan, threshold=RHAT, text=text)
    worst = max(known, key=lambda q: q.mixing.rhat)
    value, drift = worst.mixing.rhat, max(q.mixing.drift for q in known)
    single = len(chains.used) == 1
    text = "one chain: this compares its halves and cannot see other basins; " if single else ""
    text += f"R-hat of the {worst.name} is {value:.3f}: "
    if value <= RHAT:
        text += "the chains agree"
    elif drift > DRIFT:
        rate = "" if chains.constant_lr else " at a constant learning rate"
        text += f"chains still move (R-hat of a chain's own halves {drift:.2f}): train longer{rate}{_later(chains)}"
    elif single:
        text += f"the chain moves a little: train longer{_later(chains)}"
    else:
        text += (
            "each chain stays in a place of its own: raise pull (or stiffness), shorten the period, or raise "
            "temperature or rho"
        )
    return CheckResult("agreement", value <= RHAT, value, RHAT, text)


def _later(chains: Chains) -> str:
    """Return the advice to discard half of the rows that are used now; empty if too few rows would be left."""
    left = min(q.draws.shape[1] for q in chains.quantities) // 2
    return f", or leave out more of the beginning (--from {(1 + chains.start) / 2:g})" if left >= MIN_DRAWS else ""


def _draws(chains: Chains) -> CheckResult:
    known = [q for q in chains.quantities if not math.isnan(q.mixing.ess)]
    needed = float(ESS * len(chains.used))
    if not known:
        text = "no quantity changes: there are no draws"
        return CheckResult("draws", good=False, value=math.nan, threshold=needed, text=text)
    fewest: Quantity = min(known, key=lambda q: min(q.mixing.ess_bulk, q.mixing.ess_tail))
    sizes = {"bulk": fewest.mixing.ess_bulk, "tail": fewest.mixing.ess_tail}
    (kind, ess), (other, larger) = sorted(sizes.items(), key=lambda item: item[1])
    tau = max(q.tau for q in known)
    text = (
        f"{kind} effective sample size of the {fewest.name} is {ess:.0f} of {fewest.draws.size} draws "
        f"({other} {larger:.0f}), one independent draw per {tau:.0f} steps"
    )
    if ess < needed:
        text += (
            f"; at least {needed:.0f} are needed: train {needed / ess:.1f} times as long, or raise temperature or the "
            "learning rate to move faster"
        )
    return CheckResult("draws", ess >= needed, ess, needed, text)


def _temperature(chains: Chains) -> CheckResult:
    spread = chains.spread
    if spread is None:
        text = "no exchange was made: there is no distance from the center"
        return CheckResult("temperature", None, math.nan, WARM, text)
    text = f"samples are {spread.measured:.3g} from the center"
    if math.isnan(spread.stiffness):
        text += "; this coupling has no kernel to compare with"
        return CheckResult("temperature", None, math.nan, WARM, text)
    if not spread.temperature:
        text += (
            "; T is 0: mini-batch noise alone spreads them, as far as the kernel "
            f"(lambda {spread.stiffness:.3g}) would at T = {spread.implied:.2g}"
        )
        return CheckResult("temperature", None, math.nan, WARM, text)
    ratio = spread.measured / spread.kernel
    text += f", {ratio:.2f} times what lambda {spread.stiffness:.3g} and T {spread.temperature:.2g} predict"
    good = ratio <= WARM
    if not good:
        text += (
            f": mini-batch noise or long steps heat the chains as T = {spread.implied:.2g} would: "
            "lower lr or momentum, use larger batches, or set the temperature to that"
        )
    return CheckResult("temperature", good, ratio, WARM, text)


def _staleness(chains: Chains) -> CheckResult:
    others = len(chains.ranks) - 1
    count = int(chains.staleness.sum())
    if not others or not count:
        return CheckResult("staleness", None, math.nan, STALE, "no other rank updates the center")
    mean = float(chains.staleness @ np.arange(len(chains.staleness))) / count
    text = f"{mean:.2f} updates by others between a read and its add, {len(chains.staleness) - 1} at most"
    if mean > STALE * others:
        text += (
            f": more than {STALE:g} rounds of all others: delay acts as momentum: "
            "lower momentum, lr or pull, or exchange more often (period)"
        )
    return CheckResult("staleness", mean <= STALE * others, mean / others, STALE, text)


def _waits(chains: Chains) -> CheckResult:
    known = [rank for rank in chains.ranks if not math.isnan(rank.blocked)]
    if not known:
        text = "the log does not say for how long exchanges blocked training"
        return CheckResult("waits", None, math.nan, BLOCKED, text)
    worst = max(known, key=lambda rank: rank.blocked)
    text = f"exchanges blocked rank {worst.rank} for {100 * worst.blocked:.1f} % of its time"
    if worst.blocked > BLOCKED:
        overlap = "--overlap, " if chains.options.get("overlap") is False else ""
        text += f": use {overlap}a longer period, or fewer ranks per core"
    return CheckResult("waits", worst.blocked <= BLOCKED, worst.blocked, BLOCKED, text)


def _speed(chains: Chains) -> CheckResult:
    rates = {rank.rank: rank.rate for rank in chains.ranks if not math.isnan(rank.rate)}
    if len(rates) < 2:
        return CheckResult("speed", None, math.nan, SLOW, "one rank: there is no other to compare its speed with")
    median = float(np.median(list(rates.values())))
    slow = [rank for rank, rate in rates.items() if rate < SLOW * median]
    value = min(rates.values()) / median
    text = f"the slowest rank makes {value:.2f} of the median rate ({median:.3g} steps/s)"
    if slow:
        hosts = {rank.rank: rank.host for rank in chains.ranks}
        text += (
            f": slow: rank {', '.join(f'{rank} on {hosts[rank]}' for rank in slow[:8])}: check what else runs there; "
            "the samples of slow ranks lag, and a lower pull reduces their effect"
        )
    return CheckResult("speed", not slow, value, SLOW, text)


def _lost_ranks(chains: Chains) -> CheckResult:
    lost = [rank for rank in chains.ranks if rank.lost]
    left_out = [rank.rank for rank in chains.ranks if rank.rank not in chains.used]
    unfinished = sum(not rank.ended for rank in chains.ranks)
    if lost:
        names = ", ".join(f"{rank.rank} on {rank.host} (last row at {rank.last:.0f} s)" for rank in lost[:8])
        text = f"stopped writing: rank {names}"
    elif unfinished:
        text = f"{unfinished} ranks wrote no result: they are still running, or the whole run was killed"
    else:
        text = "every rank ended"
    text += f"; left out of the statistics: rank {', '.join(map(str, left_out))}" if left_out else ""
    text += ": see the job's errors for that host" if lost else ""
    return CheckResult("lost ranks", not lost, float(len(lost)), 0.0, text)


def _delta_filter(chains: Chains) -> CheckResult:
    count = sum(rank.exchanges for rank in chains.ranks)
    if not count:
        return CheckResult("guard", None, math.nan, REJECTED, "no exchange was made")
    share = sum(rank.refused for rank in chains.ranks) / count
    text = f"{100 * share:.2f} % of the exchanges were rejected"
    if share > REJECTED:
        worst = max(chains.ranks, key=lambda rank: rank.refused)
        text += (
            f", most often those of rank {worst.rank}: its chain jumps: lower lr or rho; "
            "raise max_delta_ratio only if the jumps are wanted"
        )
    return CheckResult("guard", share <= REJECTED, share, REJECTED, text)


def _log(chains: Chains) -> CheckResult:
    dropped = sum(rank.dropped for rank in chains.ranks)
    text = "no rows were lost"
    if dropped:
        text = (
            f"{dropped} rows were lost, the disk was too slow: sketch and snapshot less often, or write to a faster "
            "disk"
        )
    return CheckResult("log", not dropped, float(dropped), 0.0, text)
