"""Draws the figure of `lsam diagnose`: six panels about the chains and their exchanges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.landscape.chains.mcmc import autocorrelation
from lsam_hpc.landscape.chains.statistics import Chains, Quantity
from lsam_hpc.landscape.figures.figures import CENTER, COLOURS, figure, save

MAX_CHAINS = 16  # number of chains drawn


def draw_chains(chains: Chains, path: Path) -> Path:
    """Draw traces, autocorrelation, distance from the center, staleness, waits and speeds; return the path."""
    with figure(11, 6.2, 2, 3) as (drawing, axes):
        by_name = {quantity.name: quantity for quantity in chains.quantities}
        first = chains.quantities[0]
        _trace(axes[0, 0], first, chains)
        if len(chains.used) <= MAX_CHAINS // 2:
            axes[0, 0].legend([f"rank {rank}" for rank in chains.used], fontsize=7)
        for i, quantity in enumerate(chains.quantities):
            if np.ptp(quantity.draws) > 0:
                curve = autocorrelation(quantity.draws)
                curve = curve[: max(10, len(curve) // 3)]
                axes[0, 1].plot(
                    quantity.spacing * np.arange(len(curve)),
                    curve,
                    color=COLOURS[i % len(COLOURS)],
                    label=f"{quantity.name}: {quantity.tau:.0f} steps",
                )
        axes[0, 1].axhline(0, color=CENTER, linewidth=0.5)
        axes[0, 1].set(title="autocorrelation, and its time", xlabel="lag (steps of a chain)", ylabel="autocorrelation")
        axes[0, 1].legend(fontsize=7)
        if "center distance" in by_name:
            _trace(axes[0, 2], by_name["center distance"], chains)
            if chains.spread and chains.spread.temperature and chains.spread.kernel == chains.spread.kernel:
                axes[0, 2].axhline(
                    chains.spread.kernel, color=CENTER, linestyle="--", label="kernel: sqrt(P T / lambda)"
                )
                axes[0, 2].legend()
        else:
            axes[0, 2].set_visible(False)
        axes[1, 0].bar(np.arange(len(chains.staleness)), chains.staleness, color=COLOURS[0])
        axes[1, 0].set(title="staleness", xlabel="updates by others from read to add", ylabel="exchanges", yscale="log")
        axes[1, 0].xaxis.get_major_locator().set_params(integer=True)
        waits = chains.waits[chains.waits > 0]
        if len(waits):
            axes[1, 1].hist(1e3 * waits, np.geomspace(*_range(1e3 * waits), 40), color=COLOURS[0])
        axes[1, 1].set(title="waits", xlabel="training blocked by an exchange (ms)", ylabel="exchanges", xscale="log")
        ranks = chains.ranks
        colours = [COLOURS[4] if rank.lost else COLOURS[0] for rank in ranks]
        axes[1, 2].bar([rank.rank for rank in ranks], [rank.rate for rank in ranks], color=colours)
        axes[1, 2].set(title="speed of each rank (red: lost)", xlabel="rank", ylabel="steps per second")
        return save(drawing, path)


def _trace(ax: Any, quantity: Quantity, chains: Chains) -> None:  # noqa: ANN401 (matplotlib's objects)
    for i, draws in enumerate(quantity.draws[:MAX_CHAINS]):
        ax.plot(quantity.spacing * np.arange(len(draws)), draws, linewidth=0.8, color=COLOURS[i % len(COLOURS)])
    mixing = quantity.mixing
    sizes = f"bulk ESS {mixing.ess_bulk:.0f}, tail ESS {mixing.ess_tail:.0f}"
    ax.set(
        title=f"{quantity.name}: R-hat {mixing.rhat:.3g}\n{sizes}",
        xlabel=f"steps of a chain, after {100 * chains.start:.0f} % of the run",
        ylabel=quantity.name,
    )


def _range(values: np.ndarray[Any, Any]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > 1.01 * low else (low / 2, 2 * high)
