"""Statistics of a run: mixing and spread of its chains, staleness and waits of its exchanges, health of its ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.chains.mcmc import MIN_DRAWS, Mixing, mixing
from lsam_hpc.trajectory import Run
from lsam_hpc.trajectory.rows import Columns

HEARTBEAT_TIMEOUT = 30.0  # seconds without a row after which a rank counts as lost, if the run sets no timeout
MIN_ROWS = 0.5  # share of the median number of rows below which a rank's chain is left out of the statistics


@dataclass(frozen=True)
class Quantity:
    """A scalar quantity, logged by all chains.

    Args:
        name: of the quantity.
        draws: shape (chains, n).
        spacing: median number of a chain's steps between two draws.
        mixing: of the draws.
    """

    name: str
    draws: NDArray[np.float64]
    spacing: float
    mixing: Mixing

    @property
    def tau(self) -> float:
        """Autocorrelation time in steps."""
        return self.mixing.tau * self.spacing


@dataclass(frozen=True)
class RankHealth:
    """What one rank did, and whether it failed.

    Args:
        rank: its number.
        host: where it ran.
        steps: number of steps.
        rate: steps per second.
        last: time of its last row, in seconds since the run's start.
        ended: whether it wrote a result.
        lost: whether it stopped writing while others went on.
        exchanges: number of exchanges.
        refused: number of exchanges that the delta filter rejected.
        blocked: share of its time in which exchanges blocked training; NaN if unknown.
        dropped: number of rows that its log lost.
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
    """Distance of the samples from the center, and the distance that the kernel alone predicts.

    Args:
        measured: root mean square distance of the samples from the center at exchanges.
        stiffness: lambda of the coupling; pull (1 - momentum) / (lr period) for elastic coupling; NaN for a coupling
            without a kernel.
        temperature: T of the run.
        size: number of parameters P.
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
    """Statistics of a run's chains, as `chains` returns them.

    Args:
        ranks: health of each rank of the run.
        used: ranks whose chains are in the statistics.
        start: share of each chain's rows that is left out at its beginning.
        quantities: leading principal components of the samples' sketches, loss, distance from the center.
        explained: shares of variance along the components, of the sketches that they were computed from.
        spread: of the samples about the center; None if no exchange was made.
        staleness: number of exchanges with 0, 1, 2, ... updates by others between their read and their add.
        waits: seconds for which each exchange blocked its chain; empty if unknown.
        options: the run's options.
        constant_lr: whether the learning rate is constant over these rows; None if unknown.
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
    constant_lr: bool | None = None


def chains(run: Run, start: float = 0.5, components: int = 3, advance: Callable[[], object] = lambda: None) -> Chains:
    """Return the statistics of a run's chains.

    Args:
        run: the components need sketches of the sample; loss and distance are always logged.
        start: share of each chain's rows to leave out at its beginning. Default: 0.5.
        components: number of leading principal components of all chains' sketches: of those in the second half of the
            rows that are left out, or of the draws themselves if that are fewer than 20. Default: 3.
        advance: called after each rank whose tables were read, and again after its sketches. Default: does nothing.

    Raises:
        InputError: `start` is not in [0, 1), ArviZ is missing, a loss is not finite, or there are too few rows.
    """
    if not 0 <= start < 1:
        raise InputError(f"--from: expected a share of the rows in [0, 1), found {start}")
    steps: dict[int, Columns] = {}
    exchanges: dict[int, Columns] = {}
    for rank in run.ranks:
        steps[rank], exchanges[rank] = run.steps(rank), run.exchanges(rank)
        advance()
    _check_losses(run, steps)
    median = float(np.median([len(table["loss"]) for table in steps.values()]))
    used = [rank for rank, table in steps.items() if len(table["loss"]) >= max(1.0, MIN_ROWS * median)]
    if not used:
        raise InputError(f"{run.path}: expected steps, found none: the run ended before its first")
    quantities, explained = _components(run, used, start, components, advance)
    quantities.append(_quantity(run, "loss", [steps[rank] for rank in used], "loss", start))
    tables = [exchanges[rank] for rank in used]
    if all(np.isfinite(table["center_distance"]).sum() > 1 for table in tables):
        quantities.append(_quantity(run, "center distance", tables, "center_distance", start))
    staleness = np.concatenate([np.asarray(table["staleness"], np.int64) for table in exchanges.values()])
    blocked = np.concatenate([table["blocked"] for table in exchanges.values()]).astype(np.float64)
    return Chains(
        ranks=_health(run, steps, exchanges),
        used=used,
        start=start,
        quantities=quantities,
        explained=explained,
        spread=_spread(run, [steps[rank] for rank in used], tables, start),
        staleness=np.bincount(staleness[staleness >= 0]),
        waits=blocked[np.isfinite(blocked)],
        options=run.config,
        constant_lr=_constant_lr(run, [steps[rank] for rank in used], start),
    )


def _check_losses(run: Run, steps: Mapping[int, Columns]) -> None:
    for rank, table in steps.items():
        if (bad := np.flatnonzero(~np.isfinite(table["loss"]))).size:
            raise InputError(
                f"{run.path}: expected finite losses, found {table['loss'][bad[0]]} at step "
                f"{table['iteration'][bad[0]]} of rank {rank}: lower lr, rho or pull"
            )


def _quantity(run: Run, name: str, tables: Sequence[Columns], column: str, start: float) -> Quantity:
    series = [(table["iteration"], table[column].astype(np.float64)) for table in tables]
    return _last_draws(run, name, series, start)


def _last_draws(
    run: Run, name: str, series: Sequence[tuple[NDArray[Any], NDArray[np.float64]]], start: float
) -> Quantity:
    """Return the same number of last draws of each chain; series are (iterations, values) of a chain each."""
    finite = [(iterations[ok], values[ok]) for iterations, values in series for ok in [np.isfinite(values)]]
    count = min(len(values) - int(start * len(values)) for _, values in finite)
    if count < MIN_DRAWS:
        raise InputError(
            f"{run.path}: expected {MIN_DRAWS} rows of the {name} or more in each chain from {start:g} of the "
            f"run on, found {count}: train longer, exchange more often, or lower --from"
        )
    draws = np.stack([values[-count:] for _, values in finite])
    spacing = float(np.median(np.concatenate([np.diff(iterations[-count:]) for iterations, _ in finite])))
    return Quantity(name, draws, spacing, mixing(draws))


def _components(
    run: Run, used: Sequence[int], start: float, components: int, advance: Callable[[], object]
) -> tuple[list[Quantity], NDArray[np.float64]]:
    """Return the samples' sketches along their leading principal components, and the components' shares of variance."""
    if any("sketch/sample" not in run.log(rank).tables for rank in used):
        return [], np.empty(0)
    tables = []
    for rank in used:
        tables.append(run.sketch(rank))
        advance()
    count = min(len(table["iteration"]) - int(start * len(table["iteration"])) for table in tables)
    last = [table["values"][-count:].astype(np.float64) for table in tables] if count > 0 else []
    if count < MIN_DRAWS:
        raise InputError(
            f"{run.path}: expected {MIN_DRAWS} sketches or more in each chain from {start:g} of the run on, "
            f"found {max(count, 0)}: train longer, sketch more often, or lower --from"
        )
    # Components of the draws themselves would be the directions that happen to move slowly: with fewer independent
    # draws than dimensions, exact samples would seem to mix badly. So they are those of rows just before the draws.
    left_out = [values[len(values) // 2 :] for values in (table["values"][:-count] for table in tables)]
    together = np.concatenate(left_out if min(map(len, left_out)) >= MIN_DRAWS else last).astype(np.float64)
    together -= together.mean(0)
    _, singular, directions = np.linalg.svd(together, full_matrices=False)
    shares = singular**2 / max(float((singular**2).sum()), 1e-300)
    quantities = [
        _last_draws(
            run,
            f"component {i + 1}",
            [(table["iteration"][-count:], chain @ directions[i]) for table, chain in zip(tables, last, strict=True)],
            0,
        )
        for i in range(min(components, int((shares > 1e-12).sum())))
    ]
    return quantities, shares[: len(quantities)]


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


def _constant_lr(run: Run, steps: Sequence[Columns], start: float) -> bool | None:
    """Return whether the learning rate is constant, by the log or else by the run's options."""
    logged = np.concatenate([table["lr"][int(start * len(table["lr"])) :] for table in steps])
    logged = logged[np.isfinite(logged)]
    if len(logged):
        return bool(np.ptp(logged) == 0)
    schedule = run.config.get("lr_schedule")
    return None if schedule is None else bool(schedule == "constant")


def _health(run: Run, steps: Mapping[int, Columns], exchanges: Mapping[int, Columns]) -> list[RankHealth]:
    last = {rank: float(np.append(0.0, table["time"])[-1]) for rank, table in steps.items()}
    timeout = float(run.config.get("heartbeat_timeout", run.config.get("silent_after")) or HEARTBEAT_TIMEOUT)
    ranks = []
    for rank in run.ranks:
        log, table, times = run.log(rank), exchanges[rank], steps[rank]["time"]
        ended = log.result is not None
        span = float(np.ptp(times)) if len(times) else 0.0
        dropped = log.table("dropped")["rows"] if "dropped" in log.tables else np.empty(0)
        blocked = table["blocked"][np.isfinite(table["blocked"])].astype(np.float64)
        ranks.append(
            RankHealth(
                rank=rank,
                host=str(log.attributes["host"]),
                steps=len(times),
                rate=(len(times) - 1) / span if span > 0 else math.nan,
                last=last[rank],
                ended=ended,
                lost=not ended and max(last.values()) - last[rank] > timeout,
                exchanges=len(table["accepted"]),
                refused=int(np.count_nonzero(table["accepted"] == 0)),
                blocked=float(blocked.sum()) / span if span > 0 and len(blocked) else math.nan,
                dropped=int(dropped[-1]) if len(dropped) else 0,
            )
        )
    return ranks
