"""Draws staleness.png and prints scaling.md's table: nice python docs/figures/staleness.py OUT.png.

Each of the 90 runs takes about 10 s; runs whose results are in OUT.json are not repeated.
"""

import json
import sys
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

mpl.use("Agg")
import matplotlib.pyplot as plt

from lsam_hpc.replay.train import train
from lsam_hpc.simulate.describe import Job, Machine
from lsam_hpc.simulate.events import events
from lsam_hpc.train import data
from lsam_hpc.train.config import TrainConfig

COLORS = {1: "#0072B2", 4: "#E69F00", 16: "#009E73"}  # Okabe and Ito 2008
CHAINS, SEEDS = (2, 8, 32, 128, 256), (0, 1, 2)
STEPS, BATCH = 4096, 32  # steps of all chains together: 97 passes over the digits
STEP, PARAMETERS = 0.1, 25_000_000  # seconds, elements: an exchange reads 100 MB and adds 100 MB
NETWORKS = {"fast": 20e9, "slow": 0.5e9}  # bytes per second and rank: an exchange takes 0.1 or 4 steps


def run(network: str, period: int, chains: int, seed: int) -> dict[str, float]:
    """Train once, with the exchanges in the simulated order."""
    rate = NETWORKS[network]
    machine = Machine(
        network, ranks_per_node=1, cores=8, copy=1e11, memory=1e12, nic=2 * rate, rank_rate=rate, latency=1e-5
    )
    job = Job(chains, PARAMETERS, STEP, distribution="lognormal", sigma=0.1, period=period)
    config = TrainConfig(steps=STEPS, batch_size=BATCH, period=period, seed=seed)
    began = time.perf_counter()
    result = train(config, chains, events(job, machine, seed=seed), DIGITS)
    delays = [record.delay for chain in result.exchanges for record in chain]
    return {
        "network": network,
        "period": period,
        "chains": chains,
        "seed": seed,
        "error": result.center_test_error,
        "loss": result.center_train_loss,
        "sample_error": result.sample_test_error,
        "staleness": float(result.staleness.mean()),
        "delay": float(np.mean(delays)),
        "exchanges": len(delays),
        "seconds": time.perf_counter() - began,
    }


def all_runs(path: Path) -> list[dict[str, float]]:
    """Return the results of all runs; run those that are not in the file."""
    results = json.loads(path.read_text()) if path.exists() else []
    known = {(r["network"], r["period"], r["chains"], r["seed"]) for r in results}
    for case in [(n, p, c, s) for s in SEEDS for c in CHAINS for p in COLORS for n in NETWORKS]:
        if case not in known:
            results.append(run(*case))
            path.write_text(json.dumps(results, indent=0))
            print(results[-1], file=sys.stderr)
    return results


def main(out: str) -> None:
    """Do the missing runs, print the table and draw the figure."""
    results = all_runs(Path(out).with_suffix(".json"))
    print("| chains | steps of each | network | period 1 | period 4 | period 16 |\n|---|---|---|---|---|---|")
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    table: dict[tuple[str, int], list[str]] = {}
    for axis, network in zip(axes, NETWORKS, strict=True):
        for period, color in COLORS.items():
            means, spreads = [], []
            for chains in CHAINS:
                same = [r for r in results if (r["network"], r["period"], r["chains"]) == (network, period, chains)]
                errors = np.array([r["error"] for r in same])
                means.append(errors.mean())
                spreads.append(errors.std(ddof=1) if len(errors) > 1 else 0.0)
                stale = np.mean([r["staleness"] for r in same])
                table.setdefault((network, chains), []).append(f"{means[-1]:.1f} ± {spreads[-1]:.1f} ({stale:.0f})")
            axis.errorbar(CHAINS, means, spreads, color=color, marker="o", ms=4, capsize=3, label=f"period {period}")
        steps = 2 * 4 * PARAMETERS / NETWORKS[network] / STEP
        axis.set(xscale="log", yscale="log", xlabel="chains", title=f"{network}: an exchange takes {steps:.1f} steps")
        axis.set_xticks(CHAINS, [str(c) for c in CHAINS], minor=False)
        axis.set_xticks([], minor=True)
        axis.set_yticks([1, 2, 3, 5, 10, 20], ["1", "2", "3", "5", "10", "20"])
        axis.set_yticks([], minor=True)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("test error of the center, %")
    axes[0].legend(frameon=False)
    for chains in CHAINS:
        for network in NETWORKS:
            print(f"| {chains} | {STEPS // chains} | {network} | {' | '.join(table[network, chains])} |")
    figure.suptitle(f"digits, {STEPS:,} steps of all chains together ({STEPS * BATCH:,} images)", fontsize=10)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    torch.set_num_threads(1)
    DIGITS = data.load("digits", None)
    main(*sys.argv[1:])
