"""Draws scaling.png: simulated efficiency of LSAM and synchronous SAM over ranks; takes six minutes on two cores.

python docs/figures/scaling.py
"""

import math
import textwrap
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from lsam_hpc.simulate.describe import Job
from lsam_hpc.simulate.machines import load
from lsam_hpc.simulate.result import simulate

LEAST = 400  # least number of exchanges of all chains together
GOOD = 0.95  # efficiency below which bfloat16 is simulated too
RANKS = (1, 4, 16, 64, 256, 1024, 4096)
EXCHANGES = 5  # least number per chain; by then the load of the network is stationary
CASES = {  # (machine, parameters) -> seconds of a step
    ("two-cores", 11_000_000): 2.0,
    ("lumi-g", 11_000_000): 0.1,
    ("juwels-booster", 11_000_000): 0.1,
    ("two-cores", 1_000_000_000): 100.0,
    ("lumi-g", 1_000_000_000): 2.0,
    ("juwels-booster", 1_000_000_000): 2.0,
}
NOTE = (
    "Assumed: lengths of steps (two passes, as the titles say) are lognormal, sigma 0.1. LSAM: period 4, float32 on "
    "the wire, max_delay 1, a shard on every rank. Synchronous SAM: one allreduce of float32 gradients per step, the "
    "faster of ring and tree; half of a pass hides it. Dashed: what mends LSAM where it falls below 95 %. "
    "Machines: lsam_hpc/simulate/machines/*.yaml, with sources; two-cores with one rank on a node. Nothing of it was "
    "measured on these machines."
)


def efficiency(machine: str, parameters: int, ranks: int, method: str) -> float:
    """Return the simulated efficiency of one configuration."""
    node = load(machine)
    if not node.host_link:
        node = replace(node, ranks_per_node=1)  # the second core serves the exchange
    step = CASES[machine, parameters]
    job = Job(ranks, parameters, step, distribution="lognormal", hidden=0.5)
    if method == "synchronous":
        job = replace(job, period=0, group_size=ranks)
    elif method == "bfloat16":
        job = replace(job, wire_dtype="bfloat16")
    # Few ranks take more steps each, so that the mean is equally precise.
    count = max(EXCHANGES, LEAST // ranks)
    result = simulate(job, node, exchanges=count) if job.period else simulate(job, node, 4 * count * step)
    return result.efficiency


def main() -> None:
    """Simulate and draw."""
    efficiencies: dict[tuple[str, int, int, str], float] = {}
    with ProcessPoolExecutor(2) as pool:
        for methods in (("LSAM", "synchronous"), ("bfloat16",)):
            cases = list(CASES)
            if methods == ("bfloat16",):
                cases = [c for c in CASES if min(efficiencies[(*c, r, "LSAM")] for r in RANKS) < GOOD]
            keys = [(*case, ranks, method) for ranks in RANKS for case in cases for method in methods]
            efficiencies |= dict(zip(keys, pool.map(efficiency, *zip(*keys, strict=True)), strict=True))
    figure, axes = plt.subplots(2, 3, figsize=(11, 6.6), sharex=True, sharey=True)
    for axis, ((machine, parameters), step) in zip(axes.flat, CASES.items(), strict=True):
        for method, style, name in (
            ("LSAM", "C0o-", "LSAM, period 4"),
            ("synchronous", "C1s-", "synchronous SAM"),
            ("bfloat16", "C2^--", "LSAM, wire_dtype bfloat16"),
        ):
            if (machine, parameters, 1, method) not in efficiencies:
                continue
            values = [100 * efficiencies[machine, parameters, ranks, method] for ranks in RANKS]
            axis.plot(RANKS, values, style, label=name, markersize=4)
            print(machine, parameters, method, *(f"{r}:{v:.1f}" for r, v in zip(RANKS, values, strict=True)))
        axis.axhline(95, color="grey", linewidth=0.7, linestyle=":")
        axis.set_xscale("log", base=4)
        axis.set_xticks(RANKS, [f"{r:,}" for r in RANKS])
        axis.set_ylim(0, 105)
        axis.set_title(f"{machine}, {parameters / 1e6:,.0f} M parameters, steps of {step:g} s", fontsize=9)
        axis.legend(fontsize=8, loc="lower left")
    for axis in axes[:, 0]:
        axis.set_ylabel("steps/s, % of the ranks' own")
    for axis in axes[1]:
        axis.set_xlabel("ranks")
    figure.text(0.01, 0.005, textwrap.fill(NOTE, 190), fontsize=7, va="bottom")
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(Path(__file__).with_suffix(".png"), dpi=110)
    assert not any(math.isnan(value) for value in efficiencies.values())


if __name__ == "__main__":
    main()
