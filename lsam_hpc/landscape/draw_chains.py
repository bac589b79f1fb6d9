"""The figure of `lsam diagnose`: what the chains did, in six panels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.landscape.chains import Chains, Quantity
from lsam_hpc.landscape.figures import CENTER, COLOURS, figure, save
from lsam_hpc.landscape.vehtari2021 import autocorrelation

MOST = 16  # chains that are drawn


def draw_chains(found: Chains, path: Path) -> Path:
    """Draw traces, autocorrelation, distance from the center, staleness, waits and speeds."""
    with figure(11, 6.2, 2, 3) as (drawn, axes):
        by_name = {quantity.name: quantity for quantity in found.quantities}
        first = found.quantities[0]
        _trace(axes[0, 0], first, found)
        if len(found.used) <= MOST // 2:
            axes[0, 0].legend([f"rank {rank}" for rank in found.used], fontsize=7)
        for i, quantity in enumerate(found.quantities):
            if np.ptp(quantity.draws) > 0:
                curve = autocorrelation(quantity.draws)
                curve = curve[: max(10, len(curve) // 3)]
                axes[0, 1].plot(quantity.spacing * np.arange(len(curve)), curve, color=COLOURS[i % len(COLOURS)],
                                label=f"{quantity.name}: {quantity.tau:.0f} steps")  # fmt: skip
        axes[0, 1].axhline(0, color=CENTER, linewidth=0.5)
        axes[0, 1].set(title="autocorrelation, and its time", xlabel="lag (steps of a chain)", ylabel="autocorrelation")
        axes[0, 1].legend(fontsize=7)
        if "center distance" in by_name:
            _trace(axes[0, 2], by_name["center distance"], found)
            if found.spread and found.spread.temperature and found.spread.kernel == found.spread.kernel:
                axes[0, 2].axhline(
                    found.spread.kernel, color=CENTER, linestyle="--", label="kernel: sqrt(P T / lambda)"
                )
                axes[0, 2].legend()
        else:
            axes[0, 2].set_visible(False)
        axes[1, 0].bar(np.arange(len(found.staleness)), found.staleness, color=COLOURS[0])
        axes[1, 0].set(title="staleness", xlabel="updates by others from read to add", ylabel="exchanges", yscale="log")
        axes[1, 0].xaxis.get_major_locator().set_params(integer=True)
        waits = found.waits[found.waits > 0]
        if len(waits):
            axes[1, 1].hist(1e3 * waits, np.geomspace(*_range(1e3 * waits), 40), color=COLOURS[0])
        axes[1, 1].set(title="waits", xlabel="training held up by an exchange (ms)", ylabel="exchanges", xscale="log")
        ranks = found.ranks
        colours = [COLOURS[4] if rank.lost else COLOURS[0] for rank in ranks]
        axes[1, 2].bar([rank.rank for rank in ranks], [rank.rate for rank in ranks], color=colours)
        axes[1, 2].set(title="speed of each rank (red: lost)", xlabel="rank", ylabel="steps per second")
        return save(drawn, path)


def _trace(ax: Any, quantity: Quantity, found: Chains) -> None:  # noqa: ANN401
    for i, draws in enumerate(quantity.draws[:MOST]):
        ax.plot(quantity.spacing * np.arange(len(draws)), draws, linewidth=0.8, color=COLOURS[i % len(COLOURS)])
    mixing = quantity.mixing
    ax.set(title=f"{quantity.name}: R-hat {mixing.rhat:.3g}, ESS {mixing.ess:.0f}",
           xlabel=f"steps of a chain, after {100 * found.start:.0f} % of the run", ylabel=quantity.name)  # fmt: skip


def _range(values: Any) -> tuple[float, float]:  # noqa: ANN401
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > 1.01 * low else (low / 2, 2 * high)
