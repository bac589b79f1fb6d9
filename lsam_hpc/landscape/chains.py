"""What a run's chains did: how well they mix, how far they spread, how stale their exchanges were, who fell behind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.vehtari2021 import LEAST, Mixing, mixing
from lsam_hpc.trajectory import Run
from lsam_hpc.trajectory.rows import Columns

SILENT = 30.0  # s without a row after which a rank counts as lost, where the run does not say
BEHIND = 0.5  # share of the usual rows below which a rank's chain is left out of the statistics


@dataclass(frozen=True)
class Quantity:
    """A number that all chains have a series of.

    Args:
        name: of it.
        draws: shape (chains, n).
        spacing: steps of a chain between draws, their median.
        mixing: of the draws.
    """

    name: str
    draws: NDArray[np.float64]
    spacing: float
    mixing: Mixing

    @property
    def tau(self) -> float:
        """Autocorrelation time, steps."""
        return self.mixing.tau * self.spacing


@dataclass(frozen=True)
class RankHealth:
    """How one rank fared.

    Args:
        rank: its number.
        host: where it ran.
        steps: taken.
        rate: steps per second.
        last: time of its last row, s since the run's start.
        ended: it wrote a result.
        lost: it fell silent before the others did.
        exchanges: made.
        refused: by the guard.
        blocked: share of its time that exchanges held it up; NaN if it is not known.
        dropped: rows that its log lost.
    """

    rank: int
    host: str
    steps: int
    rate: float
    last: float
    ended: bool
    lost: bool
    exchanges: int
    refused: int
    blocked: float
    dropped: int


@dataclass(frozen=True)
class Spread:
    """Distance of the samples from the center, and what the kernel alone would give.

    Args:
        measured: root mean square distance of the samples from the center at exchanges.
        stiffness: lambda of the coupling; for elastic coupling pull (1 - momentum) / (lr period); NaN where there is
            no kernel.
        temperature: T of the run.
        size: P.
    """

    measured: float
    stiffness: float
    temperature: float
    size: int

    @property
    def kernel(self) -> float:
        """Root mean square distance under the kernel alone: sqrt(P T / lambda); curvature makes it smaller."""
        return math.sqrt(self.size * self.temperature / self.stiffness)

    @property
    def implied(self) -> float:
        """Temperature at which the kernel alone would give the measured distance: lambda d^2 / P."""
        return self.stiffness * self.measured**2 / self.size


@dataclass(frozen=True)
class Chains:
    """What `chains` found.

    Args:
        ranks: of the run.
        used: ranks whose chains are in the statistics.
        start: share of each chain's rows that was left out at its beginning.
        quantities: leading principal components of the samples' sketches, loss, distance from the center.
        explained: shares of the sketches' variance along the components.
        spread: of the samples about the center; None where no exchange was made.
        staleness: how many exchanges had 0, 1, 2, ... updates by others between their read and their add.
        waits: seconds that each exchange held its chain up; empty if it is not known.
        options: of the run that advice refers to.
    """

    ranks: list[RankHealth]
    used: list[int]
    start: float
    quantities: list[Quantity]
    explained: NDArray[np.float64]
    spread: Spread | None
    staleness: NDArray[np.int64]
    waits: NDArray[np.float64]
    options: Mapping[str, Any]


def chains(run: Run, start: float = 0.5, components: int = 3) -> Chains:
    """Return what a run's chains did.

    Args:
        run: with sketches of the sample, for components; loss and distance are always logged.
        start: share of each chain's rows to leave out. Default: the first half.
        components: leading principal components of the sketches, of all chains together. Default: 3.

    Raises:
        InputError: `start` is not in [0, 1), ArviZ is missing, a loss is not finite, or there are too few rows.
    """
    if not 0 <= start < 1:
        raise InputError(f"--from: expected a share of the rows in [0, 1), found {start}")
    steps = {rank: run.steps(rank) for rank in run.ranks}
    exchanges = {rank: run.exchanges(rank) for rank in run.ranks}
    _check_losses(run, steps)
    usual = float(np.median([len(table["loss"]) for table in steps.values()]))
    used = [rank for rank, table in steps.items() if len(table["loss"]) >= max(1.0, BEHIND * usual)]
    if not used:
        raise InputError(f"{run.path}: expected steps, found none: the run ended before its first")
    quantities, explained = _components(run, used, start, components)
    quantities.append(_quantity(run, "loss", [steps[rank] for rank in used], "loss", start))
    tables = [exchanges[rank] for rank in used]
    if all(np.isfinite(table["center_distance"]).sum() > 1 for table in tables):
        quantities.append(_quantity(run, "center distance", tables, "center_distance", start))
    known = [np.asarray(table["staleness"], np.int64) for table in exchanges.values()]
    blocked = np.concatenate([table["blocked"] for table in exchanges.values()]).astype(np.float64)
    return Chains(
        ranks=_health(run, steps, exchanges),
        used=used,
        start=start,
        quantities=quantities,
        explained=explained,
        spread=_spread(run, [steps[rank] for rank in used], tables, start),
        staleness=np.bincount(np.concatenate([part[part >= 0] for part in known])),
        waits=blocked[np.isfinite(blocked)],
        options=run.config,
    )


def _check_losses(run: Run, steps: Mapping[int, Columns]) -> None:
    for rank, table in steps.items():
        if (bad := np.flatnonzero(~np.isfinite(table["loss"]))).size:
            raise InputError(f"{run.path}: expected finite losses, found {table['loss'][bad[0]]} at step "
                             f"{table['iteration'][bad[0]]} of rank {rank}: lower lr, rho or pull")  # fmt: skip


def _quantity(run: Run, name: str, tables: Sequence[Columns], column: str, start: float) -> Quantity:
    series = [(table["iteration"], table[column].astype(np.float64)) for table in tables]
    return _cut(run, name, series, start)


def _cut(
    run: Run, name: str, series: Sequence[tuple[NDArray[Any], NDArray[np.float64]]], start: float
) -> Quantity:  # fmt: skip
    """Return the same number of last draws of each chain."""
    finite = [(at[ok], values[ok]) for at, values in series for ok in [np.isfinite(values)]]
    count = min(len(values) - int(start * len(values)) for _, values in finite)
    if count < LEAST:
        raise InputError(f"{run.path}: expected {LEAST} rows of the {name} or more in each chain from {start:g} of the "
                         f"run on, found {count}: train longer, exchange more often, or lower --from")  # fmt: skip
    draws = np.stack([values[-count:] for _, values in finite])
    spacing = float(np.median(np.concatenate([np.diff(at[-count:]) for at, _ in finite])))
    return Quantity(name, draws, spacing, mixing(draws))


def _components(
    run: Run, used: Sequence[int], start: float, components: int
) -> tuple[list[Quantity], NDArray[np.float64]]:
    """Return the series of the leading principal components of the samples' sketches."""
    if any("sketch/sample" not in run.log(rank).tables for rank in used):
        return [], np.empty(0)
    tables = [run.sketch(rank) for rank in used]
    count = min(len(table["iteration"]) - int(start * len(table["iteration"])) for table in tables)
    last = [table["values"][-count:].astype(np.float64) for table in tables] if count > 0 else []
    if count < LEAST:
        raise InputError(f"{run.path}: expected {LEAST} sketches or more in each chain from {start:g} of the run on, "
                         f"found {max(count, 0)}: train longer, sketch more often, or lower --from")  # fmt: skip
    together = np.concatenate(last)
    together -= together.mean(0)
    _, values, directions = np.linalg.svd(together, full_matrices=False)
    shares = values**2 / max(float((values**2).sum()), 1e-300)
    found = [
        _cut(run, f"component {i + 1}",
             [(table["iteration"][-count:], part @ directions[i]) for table, part in zip(tables, last, strict=True)], 0)
        for i in range(min(components, int((shares > 1e-12).sum())))
    ]  # fmt: skip
    return found, shares[: len(found)]


def _spread(run: Run, steps: Sequence[Columns], exchanges: Sequence[Columns], start: float) -> Spread | None:
    distances = np.concatenate([table["center_distance"][int(start * len(table["time"])) :] for table in exchanges])
    distances = distances[np.isfinite(distances)].astype(np.float64)
    if not len(distances):
        return None
    options = run.config
    temperature, stiffness = float(options.get("temperature") or 0), math.nan
    coupling, period = options.get("coupling"), options.get("period")
    if coupling == "kernel":
        stiffness = float(options.get("stiffness") or math.nan)
    elif coupling == "elastic" and period:
        pull = options.get("pull")
        pull = 0.9 / int(run.log(run.ranks[0]).attributes["ranks"]) if pull is None else float(pull)
        lr = float(np.nanmedian(np.concatenate([table["lr"][int(start * len(table["lr"])) :] for table in steps])))
        stiffness = pull * (1 - float(options.get("momentum") or 0)) / (lr * float(period)) if lr > 0 else math.nan
    return Spread(float(np.sqrt((distances**2).mean())), stiffness, temperature, run.size)


def _health(run: Run, steps: Mapping[int, Columns], exchanges: Mapping[int, Columns]) -> list[RankHealth]:
    last = {rank: float(np.append(0.0, table["time"])[-1]) for rank, table in steps.items()}
    silent = float(run.config.get("silent_after") or SILENT)
    found = []
    for rank in run.ranks:
        log, table, own = run.log(rank), exchanges[rank], steps[rank]["time"]
        ended = log.result is not None
        span = float(np.ptp(own)) if len(own) else 0.0
        dropped = log.table("dropped")["rows"] if "dropped" in log.tables else np.empty(0)
        blocked = table["blocked"][np.isfinite(table["blocked"])].astype(np.float64)
        found.append(RankHealth(
            rank=rank,
            host=str(log.attributes["host"]),
            steps=len(own),
            rate=(len(own) - 1) / span if span > 0 else math.nan,
            last=last[rank],
            ended=ended,
            lost=not ended and max(last.values()) - last[rank] > silent,
            exchanges=len(table["accepted"]),
            refused=int(np.count_nonzero(table["accepted"] == 0)),
            blocked=float(blocked.sum()) / span if span > 0 and len(blocked) else math.nan,
            dropped=int(dropped[-1]) if len(dropped) else 0,
        ))  # fmt: skip
    return found
