"""Verdicts on a run's chains in words: each with its number, its threshold, and what to change."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lsam_hpc.landscape.chains import Chains, Quantity

RHAT = 1.01  # Vehtari et al. 2021, section 4
DRIFT = 1.05  # R-hat of a chain's own halves that noise alone hardly reaches
ESS = 100  # independent draws per chain; Vehtari et al. 2021, section 4, 50 per half chain
WARM = 1.1  # measured spread : the kernel's, which curvature can only make smaller
STALE = 2.0  # updates by others, in rounds of all others
BLOCKED = 0.1  # share of a rank's time
SLOW = 0.5  # of the median rate
REFUSED = 0.01  # share of exchanges


@dataclass(frozen=True)
class Verdict:
    """One judgement.

    Args:
        name: what is judged.
        good: whether the number is within the threshold; None: nothing to judge by.
        value: the number.
        threshold: its bound; NaN where there is none.
        text: the judgement and, unless it is good, what to change.
    """

    name: str
    good: bool | None
    value: float
    threshold: float
    text: str


def judge(found: Chains) -> list[Verdict]:
    """Return the verdicts on a run's chains: first on the samples, then on the machine."""
    return [
        _agreement(found), _draws(found), _temperature(found), _staleness(found), _waits(found), _speed(found),
        _lost(found), _guard(found), _log(found),
    ]  # fmt: skip


def are_samples(verdicts: list[Verdict]) -> bool:
    """Return whether the chains may be used as samples: they agree, are long enough and no warmer than asked for."""
    return all(verdict.good is not False for verdict in verdicts[:3]) and verdicts[0].good is True


def _agreement(found: Chains) -> Verdict:
    known = [q for q in found.quantities if not math.isnan(q.mixing.rhat)]
    if not known:
        return Verdict("agreement", False, math.nan, RHAT, "nothing moves: the chains stand still; raise lr")
    worst = max(known, key=lambda q: q.mixing.rhat)
    value, drift = worst.mixing.rhat, max(q.mixing.drift for q in known)
    alone = "one chain: this compares its halves and cannot see other basins; " if len(found.used) == 1 else ""
    text = f"{alone}R-hat of the {worst.name} is {value:.3f}"
    if value <= RHAT:
        return Verdict("agreement", True, value, RHAT, f"{text}: the chains tell the same")
    if drift > DRIFT:
        text += (f": chains still move (R-hat of a chain's own halves {drift:.2f}): train longer at a constant "
                 "learning rate, or leave out more of the beginning (--from 0.75)")  # fmt: skip
    elif len(found.used) == 1:
        text += ": the chain moves a little: train longer, or leave out more of the beginning (--from 0.75)"
    else:
        text += ": each chain stays in a place of its own: raise pull (or stiffness), shorten the period, or raise " \
                "temperature or rho"  # fmt: skip
    return Verdict("agreement", False, value, RHAT, text)


def _draws(found: Chains) -> Verdict:
    known = [q for q in found.quantities if not math.isnan(q.mixing.ess)]
    wanted = float(ESS * len(found.used))
    if not known:
        return Verdict("draws", False, math.nan, wanted, "nothing moves: there are no draws")
    fewest: Quantity = min(known, key=lambda q: q.mixing.ess)
    ess, tau = fewest.mixing.ess, max(q.tau for q in known)
    text = (f"effective sample size of the {fewest.name} is {ess:.0f} of {fewest.draws.size} draws; "
            f"an independent one every {tau:.0f} steps")  # fmt: skip
    if ess >= wanted:
        return Verdict("draws", True, ess, wanted, text)
    return Verdict("draws", False, ess, wanted, f"{text}: {wanted:.0f} are wanted: train {wanted / ess:.1f} times as "
                   "long from here, or raise temperature or the learning rate to move faster")  # fmt: skip


def _temperature(found: Chains) -> Verdict:
    spread = found.spread
    if spread is None:
        return Verdict("temperature", None, math.nan, WARM, "no exchange was made: there is no center to spread about")
    if math.isnan(spread.stiffness):
        return Verdict("temperature", None, math.nan, WARM, f"samples are {spread.measured:.3g} from the center; this "
                       "coupling has no kernel to compare with")  # fmt: skip
    if not spread.temperature:
        return Verdict("temperature", None, math.nan, WARM, f"samples are {spread.measured:.3g} from the center; T is "
                       f"0, so that mini-batch noise alone spreads them, as the kernel (lambda {spread.stiffness:.3g}) "
                       f"does at T = {spread.implied:.2g}")  # fmt: skip
    ratio = spread.measured / spread.kernel
    text = (f"samples are {spread.measured:.3g} from the center, {ratio:.2f} of what lambda {spread.stiffness:.3g} and "
            f"T {spread.temperature:.2g} give")  # fmt: skip
    if ratio <= WARM:
        return Verdict("temperature", True, ratio, WARM, text)
    return Verdict("temperature", False, ratio, WARM, f"{text}: mini-batch noise or long steps heat the chains as T = "
                   f"{spread.implied:.2g} would: lower lr or momentum, take larger batches, or set the temperature to "
                   "that")  # fmt: skip


def _staleness(found: Chains) -> Verdict:
    others = len(found.ranks) - 1
    count = int(found.staleness.sum())
    if not others or not count:
        return Verdict("staleness", None, math.nan, STALE, "nobody else updates the center")
    mean = float(found.staleness @ np.arange(len(found.staleness))) / count
    text = f"{mean:.2f} updates by others between a read and its add, {len(found.staleness) - 1} at most"
    if mean <= STALE * others:
        return Verdict("staleness", True, mean / others, STALE, text)
    return Verdict("staleness", False, mean / others, STALE, f"{text}: more than {STALE:g} rounds of all others: delay "
                   "acts as momentum: lower momentum, lr or pull, or exchange more often (period)")  # fmt: skip


def _waits(found: Chains) -> Verdict:
    known = [rank for rank in found.ranks if not math.isnan(rank.blocked)]
    if not known:
        return Verdict("waits", None, math.nan, BLOCKED, "the log does not say how long exchanges held training up")
    worst = max(known, key=lambda rank: rank.blocked)
    text = f"exchanges held rank {worst.rank} up for {100 * worst.blocked:.1f} % of its time"
    if worst.blocked <= BLOCKED:
        return Verdict("waits", True, worst.blocked, BLOCKED, text)
    how = "a longer period" if found.options.get("overlap") is not False else "--overlap, or a longer period"
    return Verdict("waits", False, worst.blocked, BLOCKED, f"{text}: take {how}; or fewer ranks per core")


def _speed(found: Chains) -> Verdict:
    rates = {rank.rank: rank.rate for rank in found.ranks if not math.isnan(rank.rate)}
    if len(rates) < 2:
        return Verdict("speed", None, math.nan, SLOW, "one rank: nothing to compare its speed with")
    usual = float(np.median(list(rates.values())))
    slow = [rank for rank, rate in rates.items() if rate < SLOW * usual]
    value = min(rates.values()) / usual
    text = f"the slowest rank makes {value:.2f} of the median rate ({usual:.3g} steps/s)"
    if not slow:
        return Verdict("speed", True, value, SLOW, text)
    hosts = {rank.rank: rank.host for rank in found.ranks}
    who = ", ".join(f"{rank} on {hosts[rank]}" for rank in slow[:8])
    return Verdict("speed", False, value, SLOW, f"{text}: slow: rank {who}: look what else runs there; its sample "
                   "lags, and a lower pull makes that count less")  # fmt: skip


def _lost(found: Chains) -> Verdict:
    lost = [rank for rank in found.ranks if rank.lost]
    out = [rank.rank for rank in found.ranks if rank.rank not in found.used]
    more = f"; left out of the statistics: rank {', '.join(map(str, out))}" if out else ""
    if not lost:
        going = sum(not rank.ended for rank in found.ranks)
        text = f"{going} ranks have no end: the run goes on, or was killed as a whole" if going else "every rank ended"
        return Verdict("lost ranks", True, 0.0, 0.0, text + more)
    who = ", ".join(f"{rank.rank} on {rank.host} (last row at {rank.last:.0f} s)" for rank in lost[:8])
    return Verdict("lost ranks", False, float(len(lost)), 0.0, f"fell silent: rank {who}{more}: see the job's errors "
                   "for that host")  # fmt: skip


def _guard(found: Chains) -> Verdict:
    count = sum(rank.exchanges for rank in found.ranks)
    if not count:
        return Verdict("guard", None, math.nan, REFUSED, "no exchange was made")
    share = sum(rank.refused for rank in found.ranks) / count
    text = f"{100 * share:.2f} % of the exchanges were refused"
    if share <= REFUSED:
        return Verdict("guard", True, share, REFUSED, text)
    worst = max(found.ranks, key=lambda rank: rank.refused)
    return Verdict("guard", False, share, REFUSED, f"{text}, most of rank {worst.rank}: its chain jumps: lower lr or "
                   "rho; raise max_jump only if the jumps are wanted")  # fmt: skip


def _log(found: Chains) -> Verdict:
    dropped = sum(rank.dropped for rank in found.ranks)
    if not dropped:
        return Verdict("log", True, 0.0, 0.0, "no rows were lost")
    return Verdict("log", False, float(dropped), 0.0, f"{dropped} rows were lost, the disk was too slow: sketch and "
                   "snapshot less often, or write to a faster disk")  # fmt: skip
