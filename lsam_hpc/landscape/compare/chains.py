"""Chains of several runs: checks, mixing and exchanges, in a table with a column for each run and in common axes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.landscape.chains.diagnosis import ESS, RHAT, are_samples, diagnose
from lsam_hpc.landscape.chains.mcmc import autocorrelation
from lsam_hpc.landscape.chains.statistics import Chains, Quantity
from lsam_hpc.landscape.compare.comparison import BRIGHT, Case, Comparison, cell
from lsam_hpc.landscape.figures.figures import CENTER, figure, save
from lsam_hpc.landscape.figures.scales import LOG, log_axis
from lsam_hpc.landscape.figures.stored import Stored, chains_of
from lsam_hpc.util.text import columns

JUDGED = {True: "good", False: "BAD", None: "-"}


def compare_chains(runs: Mapping[str, Chains]) -> Comparison:
    """Return the comparison of chains: a row for each quantity and check, a column for each run."""
    results = {name: diagnose(chains) for name, chains in runs.items()}
    lines = [["", *runs]]
    lines.append(["samples?", *("yes" if are_samples(of_run) else "no" for of_run in results.values())])
    lines.append(["chains", *(str(len(chains.used)) for chains in runs.values())])
    for name in _quantities(runs):
        of_runs = [_of(chains, name) for chains in runs.values()]
        for i, head in enumerate(("R-hat", "bulk ESS", "tail ESS", "autocorrelation time (steps)")):
            lines.append([f"{name}: {head}", *("-" if q is None else _numbers(q)[i] for q in of_runs)])
    first = next(iter(results.values()))
    for i, check in enumerate(first):
        judged = (f"{JUDGED[of_run[i].good]} {cell(of_run[i].value)}" for of_run in results.values())
        lines.append([f"check: {check.name}", *(text.strip("- ") or "-" for text in judged)])
    rows = [(name, check) for name, of_run in results.items() for check in of_run]
    table: dict[str, list[Any]] = {"run": [name for name, _ in rows]}
    for field in ("name", "good", "value", "threshold", "text"):
        table[field] = [getattr(check, field) for _, check in rows]
    return Comparison(columns(lines), table, partial(_draw, runs))


def drawn_chains(cases: Sequence[Case], numbers: Sequence[Stored], _: Mapping[str, Any]) -> Comparison:
    """Return the comparison without its table, from what was stored of the chains: all that the figure shows."""
    runs = {case.run: chains_of(part) for case, part in zip(cases, numbers, strict=True)}
    return Comparison("", {}, partial(_draw, runs))


def _numbers(quantity: Quantity) -> tuple[str, ...]:
    mixing = quantity.mixing
    return f"{mixing.rhat:.3f}", f"{mixing.ess_bulk:.0f}", f"{mixing.ess_tail:.0f}", f"{quantity.tau:.0f}"


def _quantities(runs: Mapping[str, Chains]) -> list[str]:
    return list(dict.fromkeys(quantity.name for chains in runs.values() for quantity in chains.quantities))


def _of(chains: Chains, name: str) -> Quantity | None:
    return next((quantity for quantity in chains.quantities if quantity.name == name), None)


def _draw(runs: Mapping[str, Chains], path: Path) -> Path:
    """Draw R-hat and effective sample sizes, an autocorrelation, distances from the center, staleness and waits."""
    names = _quantities(runs)
    with figure(11, 6.6, 2, 3) as (drawing, axes):
        rhat, ess, decay, distance, stale, waits = axes.reshape(-1)
        at = np.arange(len(names))[::-1]
        shifts = np.linspace(0.15, -0.15, len(runs)) if len(runs) > 1 else np.zeros(1)
        for i, (run, chains) in enumerate(runs.items()):
            style = {"color": BRIGHT[i % len(BRIGHT)]}
            places = [(y + shifts[i], _of(chains, name)) for y, name in zip(at, names, strict=True)]
            have = [(y, quantity) for y, quantity in places if quantity is not None]
            ys = [y for y, _ in have]
            rhat.plot([q.mixing.rhat for _, q in have], ys, "o", label=run, markersize=5, **style)
            per_chain = len(chains.used)
            ess.plot([q.mixing.ess_bulk / per_chain for _, q in have], ys, "o", markersize=5, **style)
            ess.plot([q.mixing.ess_tail / per_chain for _, q in have], ys, "x", markersize=6, **style)
            first = chains.quantities[0]
            if np.ptp(first.draws) > 0:
                curve = autocorrelation(first.draws)
                curve = curve[: max(10, len(curve) // 3)]
                decay.plot(first.spacing * np.arange(len(curve)), curve, linewidth=1.2, **style)
            if moved := _of(chains, "center distance"):
                steps = moved.spacing * np.arange(moved.draws.shape[1])
                distance.plot(steps, moved.draws.mean(0), linewidth=1, **style)
            share = chains.staleness / max(1, chains.staleness.sum())
            stale.plot(np.arange(len(share)), share, "o-", markersize=4, linewidth=1, **style)
            blocked = np.sort(chains.waits[chains.waits > 0])
            if len(blocked):
                waits.plot(1e3 * blocked, np.arange(1, len(blocked) + 1) / len(blocked), linewidth=1.2, **style)
        rhat.axvline(RHAT, color=CENTER, linewidth=0.8, linestyle="--")
        ess.axvline(ESS, color=CENTER, linewidth=0.8, linestyle="--")
        for axis in (rhat, ess):
            axis.set_yticks(at, names)
            axis.set_ylim(-0.6, len(names) - 0.4)
        ess.tick_params(labelleft=False)
        rhat.set(title="R-hat", xlabel=f"R-hat (dashed: {RHAT:g})")
        ess.set(title="effective sample size per chain", xlabel=f"bulk (o) and tail (x), {LOG} (dashed: {ESS})")
        log_axis(ess.xaxis)
        decay.axhline(0, color=CENTER, linewidth=0.5)
        component = names[0]
        decay.set(title=f"autocorrelation, {component}", xlabel="lag (steps of a chain)", ylabel="autocorrelation")
        start = 100 * next(iter(runs.values())).start
        distance.set(title="distance from the center", ylabel="mean of the chains")
        distance.set_xlabel(f"steps of a chain, after {start:.0f} % of the run")
        distance.set_ylim(bottom=0)
        stale.set(title="staleness", xlabel="updates by others from read to add", ylabel="share of exchanges")
        log_axis(stale.yaxis)
        stale.xaxis.get_major_locator().set_params(integer=True)
        waits.set(title="waits", ylabel="share of exchanges that wait less")
        waits.set_xlabel("training blocked by an exchange (ms)")
        log_axis(waits.xaxis)
        drawing.legend(*rhat.get_legend_handles_labels(), loc="outside lower center", ncols=6)
        return save(drawing, path)
