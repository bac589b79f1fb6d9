"""Draws sampler.png and prints the table of docs/explanation/sampler.md: python docs/figures/sampler.py OUT.png."""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from scipy import optimize

mpl.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.helpers.quadrature import Law, Well, ascended, estimate, f_sam, fixed, line_law

BLUE, ORANGE, GREEN, VERMILION, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"  # Okabe and Ito 2008
WELL, RHO, STIFFNESS, T, LR = Well(), 0.3, 1.0, 0.4, 0.001
CHAINS, BURN, RECORDS, EVERY = 1024, 16_000, 600, 80
SHOWN = (-0.5, 0.7)
CENTERS = (-1.5, -1.0, -0.5, 0.0, 0.35, 0.7, 1.1, 1.5)


def slope_of_steps(x: np.ndarray) -> np.ndarray:
    """Return f'(x + e(x))."""
    return WELL.gradient(ascended(WELL, x, RHO))


def sample(y: float) -> np.ndarray:
    """Return samples of chains around y, shape (records, chains)."""
    chains = fixed(WELL, np.array([y]), CHAINS, LR, RHO, STIFFNESS, T, seed=round(100 * (y + 2)))
    chains.record(1, BURN)
    return chains.record(RECORDS, EVERY)[:, :, 0]


def print_table(law: Law, runs: dict[float, np.ndarray]) -> None:
    """Print the table of docs/explanation/sampler.md."""
    print("| y | quantity | quadrature | chains | standard error | sigmas |\n|---|---|---|---|---|---|")
    for y in SHOWN:
        mean = law.mean(y)
        rows = {
            "mean of x": (mean, runs[y]),
            "variance of x": (law.variance(y), (runs[y] - mean) ** 2),
            "score F'(y)": (law.score(y), STIFFNESS * (y - runs[y])),
        }
        for name, (expected, values) in rows.items():
            value, error = estimate(values.mean(axis=0))
            print(f"| {y} | {name} | {expected:.4f} | {value:.4f} | {error:.4f} | {(value - expected) / error:+.1f} |")
    jumping = line_law(WELL, RHO, STIFFNESS, T, jumping=True)
    for y in SHOWN:
        bias = law.stepped(y, LR, slope_of_steps).mean(y) - law.mean(y)
        print(f"y = {y}: mean with the jumps of f_SAM {jumping.mean(y):.4f}; bias of lr {LR} in the mean {bias:+.4f}")
    print(f"minimiser of F: {optimize.brentq(law.score, -1.2, -0.3):.3f}; of f: {WELL.critical()[0]:.3f}")


def draw_density(axes: Axes, law: Law, y: float, samples: np.ndarray) -> None:
    """Draw the chains' histogram over the density by quadrature."""
    bins = np.linspace(-2, 2, 161)
    axes.hist(samples.ravel(), bins, density=True, color=ORANGE, alpha=0.55, label="chains")
    jumping = line_law(WELL, RHO, STIFFNESS, T, jumping=True)
    axes.plot(law.along, law.density(y), color=BLUE, lw=1.6, label="q, quadrature")
    axes.plot(law.along, jumping.density(y), color=VERMILION, lw=1.0, ls="--", label="q with the jumps of f_SAM")
    axes.axvline(y, color="0.4", lw=0.8, ls=":", label="y")
    axes.set(xlim=(-2, 2), ylim=(0, 2.5), xlabel="x", ylabel="density", title=f"chains around y = {y}")


def main(out: str) -> None:
    """Run the chains, print the table and draw the figure."""
    law = line_law(WELL, RHO, STIFFNESS, T)
    runs = {y: sample(y) for y in CENTERS}
    print_table(law, runs)

    figure, ((left, right), (lower_left, lower_right)) = plt.subplots(2, 2, figsize=(9, 6.6), constrained_layout=True)
    for axes, y in zip((left, right), SHOWN, strict=True):
        draw_density(axes, law, y, runs[y])
    left.legend(frameon=False, loc="upper right", fontsize=8)

    ys = np.linspace(-1.6, 1.6, 1601)
    free = np.array([law.free_energy(y) for y in ys])
    # NaN at the jumps, so that they are not drawn as steep lines.
    sam = f_sam(WELL, ys, RHO)
    sam[np.searchsorted(ys, WELL.critical())] = np.nan
    lower_left.plot(ys, WELL.value(ys), color=GREEN, lw=1.4, label="f")
    lower_left.plot(ys, sam, color=VERMILION, lw=1.4, ls="--", label="f_SAM")
    lower_left.plot(ys, free - free.min(), color=BLUE, lw=1.6, label="F - min F, quadrature")
    lower_left.set(xlim=(-1.6, 1.6), ylim=(-0.4, 3.2), xlabel="x or y", ylabel="loss", title="landscapes")
    lower_left.legend(frameon=False, loc="upper center", fontsize=8)

    means, errors = zip(*[estimate(STIFFNESS * (y - runs[y]).mean(axis=0)) for y in CENTERS], strict=True)
    lower_right.axhline(0, color="0.7", lw=0.8)
    lower_right.plot(ys, [law.score(y) for y in ys], color=BLUE, lw=1.4, label="F', quadrature")
    lower_right.errorbar(
        CENTERS,
        means,
        yerr=4 * np.array(errors),
        fmt="o",
        ms=3.5,
        capsize=3,
        color=PURPLE,
        label="lambda (y - mean of x), chains, 4 sigma",
    )
    lower_right.set(xlim=(-1.6, 1.6), xlabel="y", ylabel="score", title="the score: theorem 1")
    lower_right.legend(frameon=False, loc="upper left", fontsize=8)
    figure.suptitle(f"f = (x² - 1)² + 0.2 x,  rho = {RHO},  lambda = {STIFFNESS:g},  T = {T},  lr = {LR}", fontsize=10)
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main(*sys.argv[1:])
