"""Draws the diagrams of the documentation: python docs/figures/diagrams.py docs/figures [NAME...]"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, VERMILION, PURPLE, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#999999"
CHAINS = (BLUE, ORANGE, GREEN, PURPLE, VERMILION, "#56B4E9")  # Okabe and Ito 2008


def canvas(height: float = 3.2, width: float = 7.0, right: float = 100, top: float = 40) -> Axes:
    """Return axes without frame, in units of about 2 mm."""
    figure, axes = plt.subplots(figsize=(width, height), constrained_layout=True)
    axes.set(xlim=(0, right), ylim=(0, top))
    axes.axis("off")
    del figure
    return axes


def box(
    axes: Axes, corner: tuple[float, float], size: tuple[float, float], text: str, colour: str, **more: object
) -> None:
    """Draw a rectangle with text in it; `corner` is the lower left one."""
    alpha = more.pop("alpha", 0.35)
    (x, y), (width, height) = corner, size
    axes.add_patch(plt.Rectangle(corner, width, height, facecolor=colour, edgecolor="0.3", lw=0.8, alpha=alpha))
    axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", **{"fontsize": 10, **more})


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], text: str = "", **more: object) -> None:
    """Draw an arrow, with text beside its middle."""
    colour = more.pop("color", "0.2")
    style = more.pop("arrowstyle", "-|>")
    axes.annotate(
        "", end, start, arrowprops={"arrowstyle": style, "color": colour, "lw": 1.4, "shrinkA": 0, "shrinkB": 0}
    )
    if text:
        dx, dy = more.pop("shift", (0, 1.2))
        axes.text(
            (start[0] + end[0]) / 2 + dx,
            (start[1] + end[1]) / 2 + dy,
            text,
            ha="center",
            va="bottom",
            fontsize=9.5,
            **more,
        )


def phases() -> Axes:
    """A step of SAM on a quadratic."""
    figure, axes = plt.subplots(figsize=(7, 3.6), constrained_layout=True)
    del figure
    hessian = np.diag([1.0, 6.0])
    u, v = np.meshgrid(np.linspace(-3.4, 1.2, 200), np.linspace(-0.55, 1.75, 200))
    axes.contour(u, v, 0.5 * (hessian[0, 0] * u**2 + hessian[1, 1] * v**2), 14, colors="0.75", linewidths=0.8)
    x = np.array([-2.6, 0.75])
    g = hessian @ x
    up = x + 0.7 * g / np.linalg.norm(g)
    down = x - 0.12 * hessian @ up
    for point, name, shift in ((x, "x", (-12, -14)), (up, "x + e", (-8, 8)), (down, "the next x", (8, -4))):
        axes.plot(*point, "o", color="k", ms=5)
        axes.annotate(name, point, textcoords="offset points", xytext=shift, fontsize=11)
    for start, end, colour, text, at in (
        (x, up, VERMILION, "perturb()", (-3.36, 0.95)),
        (up, x, BLUE, "restore()", (-2.5, 1.1)),
        (x, down, GREEN, "update()", (-2.1, 0.35)),
    ):
        bend = "arc3,rad=-0.35" if colour != GREEN else "arc3,rad=0"
        style = {"arrowstyle": "-|>", "color": colour, "lw": 1.8, "connectionstyle": bend, "shrinkA": 4, "shrinkB": 4}
        axes.annotate("", end, start, arrowprops=style)
        axes.text(*at, text, color=colour, fontsize=11, family="monospace", bbox={"fc": "w", "ec": "none", "pad": 0.5})
    white = {"fc": "w", "ec": "none", "pad": 1}
    axes.text(-1.1, 1.35, "first pass: the gradient at x\ngives the direction of e", fontsize=10, bbox=white)
    axes.text(-1.1, 0.95, "second pass: update() descends along\nthe gradient at x + e", fontsize=10, bbox=white)
    axes.plot(0, 0, "+", color="0.4")
    axes.set(xticks=[], yticks=[], xlabel="one parameter", ylabel="another")
    return axes


def exchange() -> Axes:
    """An exchange in time, of one rank."""
    axes = canvas(3.3, top=42)
    for y, name in ((32, "training thread"), (19, "exchange thread"), (6, "center, in shards\non all ranks")):
        axes.text(0, y + 2.5, name, va="center", fontsize=10)
        axes.plot([20, 100], [y, y], color="0.8", lw=0.8)
    for i in range(6):
        box(axes, (21 + 13 * i, 32), (12, 5), f"step {i + 1}", BLUE)
    box(axes, (73, 32), (1.2, 5), "", VERMILION, alpha=0.9)
    box(axes, (72, 32), (1.2, 5), "", VERMILION, alpha=0.9)
    axes.texts[-1].set_text("")
    box(axes, (74, 19), (7, 5), "read", ORANGE)
    box(axes, (81, 19), (5, 5), "delta", ORANGE)
    box(axes, (86, 19), (7, 5), "add", ORANGE)
    for i in range(4):
        box(axes, (22 + 19 * i, 6), (18, 5), f"y: rank {i}'s part", GREY)
    arrow(axes, (73.2, 32), (75, 24))
    arrow(axes, (77, 11), (77, 19))
    arrow(axes, (89.5, 19), (89.5, 11))
    arrow(axes, (93, 24), (98.8, 32))
    axes.text(72, 38.2, "stage a copy of x", ha="center", fontsize=9.5)
    axes.text(99, 38.2, "apply the result", ha="right", fontsize=9.5)
    axes.text(57, 26.5, "after every period-th step (4)", ha="center", fontsize=9.5)
    return axes


def train() -> Axes:
    """What goes into lsam train and what comes out."""
    axes = canvas(2.9, top=36)
    for y, text in ((25, "options: flags, run.toml"), (15, "data: a name, or yours"), (5, "model: likewise")):
        box(axes, (0, y), (30, 7), text, GREY)
        arrow(axes, (30, y + 3.5), (37, 18.5))
    box(axes, (37, 10), (23, 17), "mpirun -n 4\nlsam train", BLUE, family="monospace")
    for y, text in (
        (28.5, "config.json       the options"),
        (20.5, "rank-0000.h5 ...  logs of ranks"),
        (12.5, "checkpoints/      to resume from"),
        (4.5, "  center.pt       the solution"),
    ):
        arrow(axes, (60, 18.5), (66, y + 2.5))
        box(axes, (66, y), (34, 5.5), "", GREEN, alpha=0.3)
        axes.text(67, y + 2.7, text, va="center", fontsize=8, family="monospace")
    axes.text(83, 1.2, "the run directory (--out)", ha="center", fontsize=9.5)
    return axes


def gpus() -> Axes:
    """Where things are on a node with GPUs."""
    axes = canvas(3.2, top=40)
    for i in range(4):
        x = 2 + 25 * i
        box(axes, (x, 27), (21, 11), f"GPU {i}, rank {i}\nmodel, images,\noptimizer", CHAINS[i])
        arrow(axes, (x + 7, 27), (x + 7, 17))
        arrow(axes, (x + 14, 17), (x + 14, 27))
        box(axes, (x, 11), (21, 6), "pinned staging buffer", GREY, fontsize=9)
        arrow(axes, (x + 10.5, 11), (x + 10.5, 8), arrowstyle="<|-|>")
    axes.text(49, 22, "copies on a separate stream", ha="center", fontsize=10, bbox={"fc": "w", "ec": "none", "pad": 2})
    box(axes, (2, 2), (96, 6), "the center: shared memory of the node, an equal part on every rank", ORANGE)
    return axes


def resume() -> Axes:
    """Four chains stop; six go on."""
    figure, axes = plt.subplots(figsize=(7, 3.0), constrained_layout=True)
    del figure
    for i in range(6):
        colour, y = CHAINS[i], 5 - i
        if i < 4:
            axes.plot([0, 10], [y, y], color=colour, lw=4, solid_capstyle="butt")
            axes.plot(10, y, "s", color="k", ms=6)
        axes.plot([13, 24], [y, y], color=colour, lw=4, solid_capstyle="butt")
        axes.plot(13, y, ">" if i < 4 else "*", color="k", ms=7 if i < 4 else 11)
        axes.text(-0.3, y, f"rank {i}", ha="right", va="center")
    for x in (3.4, 6.8):
        axes.plot([x] * 4, [5, 4, 3, 2], "|", color="w", ms=14, mew=2)
    axes.axvspan(10.2, 12.8, color="0.92")
    axes.text(5, -0.1, "USR1, a time limit,\nor a launcher that is gone", ha="center", va="center", fontsize=10)
    axes.text(11.5, 5.6, "checkpoint", ha="center", fontsize=10)
    axes.text(11.5, 0.5, "exit code 3", ha="center", va="center", fontsize=10, rotation=90)
    axes.text(18.5, 5.6, "--resume auto, on six ranks", ha="center", fontsize=10, family="monospace")
    axes.text(13.6, 0.45, "new chains start at the center", fontsize=10)
    axes.set(xlim=(-2.8, 24), ylim=(-0.8, 6.2))
    axes.axis("off")
    return axes


def job() -> Axes:
    """The life of a batch job."""
    axes = canvas(2.7, top=34)
    boxes = (
        (0, "queue", GREY),
        (17, "lsam doctor's\nquick checks", ORANGE),
        (36, "train", BLUE),
        (59, "checkpoint,\nexit code 3", GREEN),
    )
    for x, text, colour in boxes:
        box(axes, (x, 15), (14 if text != "train" else 16, 9), text, colour)
    box(axes, (82, 15), (18, 9), "finished:\ncenter.pt, code 0", GREEN)
    arrow(axes, (14, 19.5), (17, 19.5))
    arrow(axes, (31, 19.5), (36, 19.5))
    arrow(axes, (52, 17.5), (59, 17.5))
    axes.annotate(
        "",
        (82, 21),
        (52, 22.5),
        arrowprops={"arrowstyle": "-|>", "color": "0.2", "lw": 1.4, "connectionstyle": "arc3,rad=-0.35"},
    )
    axes.text(67, 29.3, "the last step is done", ha="center", fontsize=9.5)
    axes.text(55.5, 11.5, "USR1, 5 minutes\nbefore the limit", ha="center", va="center", fontsize=9)
    axes.plot([66, 66, 7, 7], [15, 5, 5, 13.5], color="0.2", lw=1.4)
    arrow(axes, (7, 13), (7, 15))
    axes.text(
        36.5, 0.4, "requeued, at most --requeue times; goes on at the checkpoint's step", ha="center", fontsize=9.5
    )
    return axes


def containers() -> Axes:
    """Who starts what."""
    axes = canvas(3.0, top=38)
    box(axes, (0, 22), (16, 9), "srun or\nmpirun", ORANGE)
    for i in range(2):
        y = 20 - 18 * i
        box(axes, (28, y), (46, 15), "", GREY, alpha=0.2)
        axes.text(29, y + 12.3, f"container of rank {i}", fontsize=9.5)
        box(axes, (31, y + 2), (18, 8), "lsam train", BLUE, family="monospace")
        box(axes, (53, y + 2), (18, 8), "Open MPI", GREEN)
        arrow(axes, (16, 26.5), (28, y + 8))
        arrow(axes, (74, y + 6), (84, 19))
    axes.text(22, 31.5, "starts, and\nspeaks PMIx", ha="center", fontsize=9.5)
    box(axes, (84, 11), (16, 16), "the node's\n/dev/shm,\nnetwork,\nprocess IDs", ORANGE, fontsize=9.5)
    return axes


def horovod() -> Axes:
    """Allreduces against chains, the last rank slow."""
    figure, both = plt.subplots(1, 2, figsize=(7, 2.9), constrained_layout=True, sharey=True)
    del figure
    for axes, title in zip(
        both, ("Horovod: an allreduce (line) in each step", "LSAM: exchanges (triangles), no waiting"), strict=True
    ):
        for rank in range(4):
            length, y, at = (3.0 if rank == 3 else 1.0), 3 - rank, 0.0
            for i in range(24):
                if at + length > 12.3:
                    break
                axes.add_patch(plt.Rectangle((at, y - 0.3), length * 0.96, 0.6, color=CHAINS[rank], alpha=0.75, lw=0))
                at += length if axes is both[1] else 3.0
                if axes is both[1] and i % 4 == 3:
                    axes.plot(at, y - 0.42, "^", color="k", ms=5)
        if axes is both[0]:
            for x in (3, 6, 9, 12):
                axes.axvline(x, color="k", lw=1.5)
        axes.set(title=title, xlim=(0, 12.4), ylim=(-0.7, 3.6), yticks=range(4), xticks=[], xlabel="time")
        axes.set_yticklabels([f"rank {3 - i}" for i in range(4)])
        axes.title.set_fontsize(10.5)
    return both[0]


def lost_ranks() -> Axes:
    """One of four ranks is lost."""
    figure, axes = plt.subplots(figsize=(7, 2.7), constrained_layout=True)
    del figure
    for i in range(4):
        y = 3 - i
        axes.plot([0, 9 if i == 2 else 10], [y, y], color=CHAINS[i], lw=4, solid_capstyle="butt")
        if i == 2:
            axes.plot(9, y, "x", color="k", ms=11, mew=3)
        else:
            axes.plot([12, 24], [y, y], color=CHAINS[i], lw=4, solid_capstyle="butt")
        axes.text(-0.3, y, f"rank {i}", ha="right", va="center")
    axes.axvspan(10.1, 11.9, color="0.9")
    axes.text(12.2, 3.45, "agree, make windows anew", fontsize=10)
    axes.text(12.3, 1, "its part of the center is kept", va="center", fontsize=10)
    axes.text(24, -0.55, "code 4: finished without rank 2", ha="right", fontsize=10)
    axes.set(xlim=(-2.8, 24.2), ylim=(-0.9, 4))
    axes.axis("off")
    return axes


def frameworks() -> Axes:
    """Every rank runs a framework's trainer."""
    axes = canvas(2.7, top=34)
    for i in range(4):
        x = 2 + 25 * i
        box(axes, (x, 16), (21, 16), "", CHAINS[i], alpha=0.25)
        axes.text(x + 10.5, 28.5, f"rank {i}: a Trainer", ha="center", fontsize=10)
        box(axes, (x + 2, 18), (17, 7), "LSAM optimizer", CHAINS[i], fontsize=9.5)
        arrow(axes, (x + 10.5, 18), (x + 10.5, 8), arrowstyle="<|-|>")
    box(axes, (2, 2), (96, 6), "the center: what validation, checkpoints and the end of training use", ORANGE)
    return axes


def samples() -> Axes:
    """Which samples each pass takes."""
    figure, axes = plt.subplots(figsize=(7, 2.6), constrained_layout=True)
    del figure
    rise = np.array([0.2, 0.9, 0.4, 0.7, 0.1, 0.8, 0.3, 0.6])
    drawn = np.array([1, 3, 4, 5])
    names = ("SAM", "ESAM(0.5)", "AUSAM(0.5)")
    chosen = (np.arange(8), np.argsort(-rise)[:4], drawn)
    first = (np.arange(8), np.arange(8), drawn)
    for row, (name, one, two) in enumerate(zip(names, first, chosen, strict=True)):
        for column, taken in enumerate((one, two)):
            for i in range(8):
                at = (10 * column + i, 2 - row)
                full = i in taken
                axes.add_patch(
                    plt.Rectangle(
                        at, 0.85, 0.7, fc=BLUE if full else "w", ec="0.5", alpha=0.3 + 0.7 * rise[i] if full else 1
                    )
                )
        axes.text(-0.4, 2.35 - row, name, ha="right", va="center", family="monospace")
    axes.text(4, 2.95, "pass at x", ha="center")
    axes.text(14, 2.95, "pass at x + e", ha="center")
    axes.text(
        9,
        -0.35,
        "each square is a sample of the mini-batch; the darker, the more the ascent raises its loss",
        ha="center",
        fontsize=9.5,
        color="0.3",
    )
    axes.set(xlim=(-3.4, 18.2), ylim=(-0.5, 3.4))
    axes.axis("off")
    return axes


def fsdp() -> Axes:
    """A step of SAM on sharded parameters."""
    axes = canvas(2.9, top=36)
    for i in range(2):
        y = 20 - 16 * i
        axes.text(0, y + 4.5, f"rank {i}", va="center")
        box(axes, (9, y), (17, 9), f"half {i} of x\nand of g", CHAINS[i])
        box(axes, (50, y), (17, 9), f"half {i}\nof x + e", CHAINS[i])
        box(axes, (83, y), (17, 9), f"half {i} of\nthe next x", CHAINS[i])
        arrow(axes, (26, y + 4.5), (33, 18 + 2 * (1 - 2 * i)))
        arrow(axes, (43, 18 + 2 * (1 - 2 * i)), (50, y + 4.5))
        arrow(axes, (67, y + 4.5), (83, y + 4.5), "second pass")
    box(axes, (33, 13), (10, 10), "|g| over\nall ranks", ORANGE)
    return axes


def algorithm() -> Axes:
    """Chains around a center in a landscape of two basins."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3.2), constrained_layout=True)
    del figure
    u, v = np.meshgrid(np.linspace(-2.2, 2.2, 220), np.linspace(-1.6, 1.6, 160))

    def f(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        sharp, wide = np.exp(-((a - 1.2) ** 2 + b**2) / 0.06), np.exp(-((a + 0.7) ** 2 + 0.6 * b**2) / 0.8)
        return 1.4 - 1.1 * sharp - wide + 0.08 * (a**2 + b**2)

    left.contourf(u, v, f(u, v), 18, cmap="Greys", alpha=0.5)
    draws = np.random.default_rng(3)
    center = np.array([-0.55, 0.1])
    for i in range(4):
        x, path = center + draws.normal(0, 0.5, 2), []
        for _ in range(60):
            h = 1e-4
            slope = np.array([f(x[0] + h, x[1]) - f(x[0] - h, x[1]), f(x[0], x[1] + h) - f(x[0], x[1] - h)]) / (2 * h)
            x = x - 0.1 * (slope + 0.6 * (x - center)) + draws.normal(0, 0.11, 2)
            path.append(x)
        left.plot(*np.transpose(path), color=CHAINS[i], lw=1.1)
        left.plot(*path[-1], "o", color=CHAINS[i], ms=6)
        left.plot([path[-1][0], center[0]], [path[-1][1], center[1]], color=CHAINS[i], lw=1, ls=":")
    left.plot(*center, "*", color="k", ms=14)
    left.set(xticks=[], yticks=[], title="chains sample around the center (star)")
    x = np.linspace(-2.2, 2.2, 600)
    line = f(x, np.zeros_like(x))
    kernel = np.exp(-((x[:, None] - x[None, :]) ** 2) / (2 * 0.35**2))
    smooth = -0.25 * np.log((kernel * np.exp(-line[None, :] / 0.25)).sum(1) / kernel.sum(1))
    right.plot(x, line, color=GREY, label="the loss f")
    right.plot(x, smooth, color=BLUE, lw=2, label="the smoothed landscape F")
    right.set(xticks=[], yticks=[], title="F prefers the wide minimum")
    right.legend(frameon=False, fontsize=9)
    return left


def growing() -> Axes:
    """Joining by a stop, which works, and by a spawn, which is not built."""
    figure, axes = plt.subplots(figsize=(7, 2.4), constrained_layout=True)
    del figure
    for row, (name, gap) in enumerate((("built: stop, resume on more ranks", 3.5), ("not built: MPI_Comm_spawn", 1.2))):
        base = 5 - 3 * row
        axes.text(0, base + 1.35, name, fontsize=10)
        for i in range(3):
            y = base + 0.6 - 0.6 * i
            if i < 2:
                axes.plot([0, 9], [y, y], color=CHAINS[i], lw=4, solid_capstyle="butt")
            axes.plot([9 + gap, 24], [y, y], color=CHAINS[i], lw=4, solid_capstyle="butt")
        axes.axvspan(9, 9 + gap, ymin=(base - 0.9 + 1.5) / 8.6, ymax=(base + 0.9 + 1.5) / 8.6, color="0.9")
    axes.text(9.1, 6.3, "checkpoint, end, start", fontsize=9.5)
    axes.text(9.1, 3.35, "all ranks wait in the spawn", fontsize=9.5)
    axes.set(xlim=(-0.3, 24.3), ylim=(-1.5 + 1.5, 7.1))
    axes.axis("off")
    return axes


def own_model() -> Axes:
    """What the landscape programs need of a model of one's own."""
    axes = canvas(2.5, top=31)
    names = ("mine.py, model(): an nn.Module", "mine.py, data(): pairs in a fixed order", "run directory: the states")
    for y, text in zip((21, 12, 3), names, strict=True):
        box(axes, (0, y), (43, 7), text, (BLUE, GREEN, GREY)[(21 - y) // 9])
        arrow(axes, (43, y + 3.5), (51, 15.5))
    box(axes, (51, 9), (24, 13), "lsam surface,\nspectrum, path, ...", ORANGE, family="monospace", fontsize=9)
    arrow(axes, (75, 15.5), (81, 15.5))
    box(axes, (81, 10), (19, 11), "a figure and\nits numbers", GREY)
    return axes


def tests() -> Axes:
    """What the two tiers run."""
    axes = canvas(2.4, top=30)
    box(axes, (0, 3), (60, 24), "", BLUE, alpha=0.12)
    axes.text(2, 23, "fast tier: one MPI, 1 and the most ranks", fontsize=10.5)
    box(axes, (3, 6), (26, 13), "one process,\na worker per core", BLUE)
    box(axes, (32, 6), (25, 13), "MPI jobs,\none at a time", BLUE)
    box(axes, (63, 3), (37, 24), "", ORANGE, alpha=0.15)
    axes.text(65, 23, "only with --all", fontsize=10.5)
    axes.text(
        65,
        12,
        "the second MPI,\nall numbers of ranks, kills,\nmutations, statistics, Slurm,\ntwo hosts, a browser",
        va="center",
        fontsize=9.5,
    )
    return axes


DIAGRAMS: tuple[Callable[[], Axes], ...] = (
    *(
        phases,
        exchange,
        train,
        gpus,
        resume,
        job,
        containers,
        horovod,
        lost_ranks,
        frameworks,
        samples,
        fsdp,
        algorithm,
    ),
    *(growing, own_model, tests),
)


def main(out: str, *names: str) -> None:
    """Draw the diagrams."""
    for diagram in DIAGRAMS:
        name = diagram.__name__.replace("_", "-")
        if names and name not in names:
            continue
        figure = diagram().figure
        figure.savefig(Path(out) / f"{name}.png", dpi=130)
        plt.close(figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
