"""The figure of `lsam diagnose`: traces and rank plots of the chains, and panels about their exchanges."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.landscape.chains.mcmc import autocorrelation
from lsam_hpc.landscape.chains.statistics import Chains, Quantity
from lsam_hpc.landscape.figures.figures import CENTER, COLOURS, figure, heading, legend, save
from lsam_hpc.landscape.figures.scales import log_axis

MAX_CHAINS = 16  # number of chains drawn


def draw_chains(chains: Chains, path: Path, title: str = "") -> Path:
    """Draw each quantity's trace and rank plot, autocorrelation, staleness, waits and speeds; return the path.

    Args:
        chains: statistics of the run.
        path: of the figure, see `figures.save`.
        title: of the figure.
    """
    rows = len(chains.quantities)
    with figure(7.0, 1.8 * rows + 4.6, rows + 2, 2) as (drawing, axes):
        handles: list[Any] = []
        for i, (quantity, (trace, ranks)) in enumerate(zip(chains.quantities, axes, strict=False)):
            lines = _trace(trace, quantity, chains)
            handles = handles or lines
            _rank_plot(ranks, quantity, chains)
            if i == rows - 1:
                trace.set_xlabel(f"steps of a chain, after {100 * chains.start:.0f} % of the run")
                ranks.set_xlabel("rank of the draw among those of all chains")
        _autocorrelation(axes[rows, 0], chains)
        _exchanges(axes[rows, 1], axes[rows + 1, 0], chains)
        _speeds(axes[rows + 1, 1], chains)
        legend(drawing, handles, cols=8)
        heading(drawing, title)
        return save(drawing, path)


def rank_counts(draws: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the edges of bins of ranks, and the number of each chain's draws in each bin.

    Ranks are those of all chains' draws together, 1 for the smallest; equal draws share their mean rank. If the chains
    agree, each has the same number in each bin.

    Args:
        draws: shape (chains, n).

    Returns:
        Edges, shape (bins + 1,), and counts, shape (chains, bins).

    Source: Vehtari et al. 2021, "Rank-Normalization, Folding, and Localization", section 5, with ArviZ's bins.
    """
    _, inverse, counts = np.unique(draws, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse].reshape(draws.shape)
    bins = int(np.ceil(2 * np.log2(draws.shape[1]))) + 1
    edges = np.linspace(0, draws.size, bins + 1)
    return edges, np.array([np.histogram(row, edges)[0] for row in ranks], np.float64)


def _trace(ax: Any, quantity: Quantity, chains: Chains) -> list[Any]:  # noqa: ANN401 (matplotlib's objects)
    lines: list[Any] = []
    for i, (rank, draws) in enumerate(zip(chains.used[:MAX_CHAINS], quantity.draws, strict=False)):
        steps = quantity.spacing * np.arange(len(draws))
        lines += ax.plot(steps, draws, linewidth=0.8, alpha=0.8, color=_colour(i), label=f"rank {rank}")
    mixing, spread = quantity.mixing, chains.spread
    ax.set_title(
        f"{quantity.name}: R-hat {mixing.rhat:.3g}, bulk ESS {mixing.ess_bulk:.0f}, tail ESS {mixing.ess_tail:.0f}",
        fontsize=9,
        loc="left",
    )
    ax.set_ylabel(quantity.name)
    ax.margins(x=0.01)
    if quantity.name == "center distance" and spread and spread.temperature and math.isfinite(spread.kernel):
        line = ax.axhline(spread.kernel, color=CENTER, linestyle="--", label="kernel: sqrt(P T / lambda)")
        ax.legend(handles=[line], fontsize=7)
    return lines


def _rank_plot(ax: Any, quantity: Quantity, chains: Chains) -> None:  # noqa: ANN401 (matplotlib's objects)
    """Draw the histogram of each chain's ranks, one above the other, with the height for equal chains as a line."""
    edges, counts = rank_counts(quantity.draws)
    counts = counts[:MAX_CHAINS]
    gap = 1.05 * max(float(counts.max()), 1.0)
    for i, row in enumerate(counts):
        middle = (edges[1:] + edges[:-1]) / 2
        ax.bar(middle, row, np.diff(edges), bottom=i * gap, color=_colour(i), edgecolor="white", linewidth=0.5)
        ax.axhline(i * gap + row.mean(), color=CENTER, linestyle="--", linewidth=0.8)
    every = -(-len(counts) // 8)
    ax.set_yticks(gap * np.arange(len(counts))[::every], [str(rank) for rank in chains.used[: len(counts) : every]])
    ax.set_ylabel("chain of rank")
    ax.set_xlim(0, edges[-1])
    ax.set_ylim(0, gap * len(counts))
    ax.grid(visible=False)


def _autocorrelation(ax: Any, chains: Chains) -> None:  # noqa: ANN401 (matplotlib's objects)
    for i, quantity in enumerate(chains.quantities):
        if np.ptp(quantity.draws) > 0:
            curve = autocorrelation(quantity.draws)
            curve = curve[: max(10, len(curve) // 3)]
            label = f"{quantity.name}: {quantity.tau:.0f} steps"
            style = ("-", "--", "-.", ":")[i % 4]
            ax.plot(quantity.spacing * np.arange(len(curve)), curve, style, color=_colour(i), label=label)
    ax.axhline(0, color=CENTER, linewidth=0.5)
    ax.set(title="autocorrelation, and its time", xlabel="lag (steps of a chain)", ylabel="autocorrelation")
    if ax.get_legend_handles_labels()[0]:
        ax.set_ylim(top=1.8)
        ax.set_yticks([tick for tick in ax.get_yticks() if ax.get_ylim()[0] <= tick <= 1])
        ax.legend(fontsize=6.5, ncols=2, loc="upper center", borderpad=0, columnspacing=1)


def _exchanges(staleness: Any, waits: Any, chains: Chains) -> None:  # noqa: ANN401 (matplotlib's objects)
    staleness.bar(np.arange(len(chains.staleness)), chains.staleness, color=COLOURS[0])
    staleness.set(title="staleness", xlabel="updates by others from read to add", ylabel="exchanges")
    staleness.xaxis.get_major_locator().set_params(integer=True)
    if chains.staleness.any():
        staleness.set_ylim(0.5, 2 * int(chains.staleness.max()))
        log_axis(staleness.yaxis)
    seconds = chains.waits[chains.waits > 0]
    waits.set(title="waits", xlabel="training blocked by an exchange (ms)", ylabel="exchanges")
    if len(seconds):
        low, high = _range(1e3 * seconds)
        waits.hist(1e3 * seconds, np.geomspace(low, high, 40), color=COLOURS[0])
        waits.set_xlim(low, high)
        log_axis(waits.xaxis)
    else:
        waits.text(0.5, 0.5, "none", ha="center", va="center", transform=waits.transAxes)


def _speeds(ax: Any, chains: Chains) -> None:  # noqa: ANN401 (matplotlib's objects)
    from matplotlib.ticker import MaxNLocator

    lost = any(rank.lost for rank in chains.ranks)
    colours = [COLOURS[4] if rank.lost else COLOURS[0] for rank in chains.ranks]
    ax.bar([rank.rank for rank in chains.ranks], [rank.rate for rank in chains.ranks], color=colours)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    numbers = [rank.rank for rank in chains.ranks]
    ax.set_xlim(min(numbers) - 0.6, max(numbers) + 0.6)
    title = "speed of each rank (red: lost)" if lost else "speed of each rank"
    ax.set(title=title, xlabel="rank", ylabel="steps per second")


def _colour(i: int) -> str:
    return COLOURS[i % len(COLOURS)]


def _range(values: NDArray[Any]) -> tuple[float, float]:
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > 1.01 * low else (low / 2, 2 * high)
