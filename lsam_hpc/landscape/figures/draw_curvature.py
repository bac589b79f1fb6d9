"""Figures of spectra, of sharpness during training, and of sharpness as a function of the radius."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from lsam_hpc.landscape.curvature.edge_of_stability import Edge, Limits
from lsam_hpc.landscape.curvature.smoothed_density import Density
from lsam_hpc.landscape.figures.draw_surface import value_axis
from lsam_hpc.landscape.figures.figures import CENTER, COLOURS, figure, heading, legend, save
from lsam_hpc.landscape.figures.scales import AUTOMATIC, Scale, log_axis, log_ticks

MOST_POINTS = 2000  # logged steps drawn
MEDIAN_OF = 21  # drawn steps in the running median of SAM's limit
MOST_NAMED = 8  # ranks that the legend names one by one
POINTS = 2048  # of a drawn density
MOST_MARKED = 40  # largest number of values of a rank at which each gets a marker
LEAST = 1e-7  # share of the largest weight below which a node is rounding
SAM_LIMIT = "SAM's limit"
NAMES = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix"}


def draw_spectra(
    spectra: Mapping[str, tuple[NDArray[np.float64], Density]], path: Path, title: str = "", *, scale: Scale = AUTOMATIC
) -> Path:
    """Draw the spectral density of each matrix, with its largest eigenvalues as ticks.

    Args:
        spectra: name of the matrix -> (largest eigenvalues, or none; density).
        path: of the figure.
        title: of the figure.
        scale: of the density. Default: logarithmic.
    """
    with figure(6.5, 0.6 + 2.5 * len(spectra), len(spectra), 1) as (drawing, axes):
        for ax, (matrix, (values, density)) in zip(np.ravel(axes), spectra.items(), strict=True):
            draw_densities(ax, [(density, {"color": COLOURS[0]})], scale)
            at, smooth = ax.lines[0].get_data()
            ax.fill_between(at, ax.get_ylim()[0], smooth, color=COLOURS[0], alpha=0.25, linewidth=0)
            if len(values):
                label = f"{len(values)} largest: {values[0]:.3g} to {values[-1]:.3g}"
                look: dict[str, Any] = {"color": COLOURS[4], "markersize": 12, "markeredgewidth": 1.2, "label": label}
                ax.plot(values, np.full(len(values), 0.06), "|", transform=ax.get_xaxis_transform(), **look)
                ax.legend(loc="upper right")
            ax.set_title(NAMES[matrix])
            ax.margins(x=0)
        heading(drawing, title)
        return save(drawing, path)


def draw_densities(
    axis: Any,  # noqa: ANN401 (matplotlib's objects)
    densities: Sequence[tuple[Density, Mapping[str, Any]]],
    scale: Scale = AUTOMATIC,
) -> None:
    """Draw densities over each other, each smoothed with 1 % of its range; between eigenvalues they lie on the axis.

    The axis begins at the power of ten below the lowest peak, those of a weight of 1e-7 and less left out.

    Args:
        axis: of matplotlib.
        densities: with the style of each line.
        scale: of the density. Default: logarithmic.
    """
    logarithmic = scale.logarithmic is not False
    curves = []
    for density, style in densities:
        at = np.linspace(density.nodes[0] - 8 * density.width, density.nodes[-1] + 8 * density.width, POINTS)
        curves.append((at, density.smoothed(at), style))
    floor = min(_floor(density) for density, _ in densities) if logarithmic else 0.0
    top = (3 if logarithmic else 1.05) * max(float(smooth.max()) for _, smooth, _ in curves)
    low, high = scale.limits or (floor, top)
    for at, smooth, style in curves:
        axis.plot(at, np.maximum(smooth, low), **{"linewidth": 1, **style})
    axis.set(xlabel="eigenvalue (loss / parameter²)", ylabel="density (share per unit)", ylim=(low, high))
    if logarithmic:
        log_axis(axis.yaxis)


def _floor(density: Density) -> float:
    """Return the power of ten below the peaks of the density, those of a weight of 1e-7 and less left out."""
    weights = density.weights[density.weights > LEAST * float(density.weights.max())]
    lowest = float(weights.min()) / (density.width * np.sqrt(2 * np.pi))
    return float(10 ** np.floor(np.log10(lowest / 2)))


def draw_layers(
    layers: Sequence[str],
    tops: Mapping[str, NDArray[np.float64]],
    means: Mapping[str, NDArray[np.float64]],
    path: Path,
    title: str = "",
) -> Path:
    """Draw the largest and the mean eigenvalue (trace / parameters) of each layer's block, one colour per matrix.

    A panel whose values are empty is left out.
    """
    both = ((tops, "largest eigenvalue\nof the block"), (means, "mean eigenvalue\n(trace / parameters)"))
    panels = [(values, label) for values, label in both if all(map(len, values.values()))]
    with figure(1.4 + 2.9 * len(panels), 1.5 + 0.24 * len(layers), 1, len(panels)) as (drawing, axes):
        axes = np.reshape(axes, (1, -1))
        at = np.arange(len(layers))[::-1]
        for ax, (values, label) in zip(axes[0], panels, strict=True):
            shifts = 0.16 * (np.arange(len(values)) - (len(values) - 1) / 2)
            for i, (matrix, row) in enumerate(values.items()):
                ax.plot(row, at - shifts[i], "os^D"[i % 4], markersize=5, color=COLOURS[i], label=NAMES[matrix])
            ax.set_yticks(at, layers, fontsize=8)
            ax.set_ylim(-0.6, len(layers) - 0.4)
            ax.set_xlabel(label)
            ax.margins(x=0.08)
            ax.locator_params(axis="x", nbins=5)
            if min(float(np.min(row)) for row in values.values()) > 0:
                ax.set_xscale("log")
                log_axis(ax.xaxis)
        for ax in axes[0, 1:]:
            ax.set_yticklabels([])
        legend(drawing, axes[0, 0].get_legend_handles_labels()[0])
        heading(drawing, title)
        return save(drawing, path)


def draw_edge(
    edge: Edge, path: Path, title: str = "", measured: Edge | None = None, *, scale: Scale = AUTOMATIC
) -> Path:
    """Draw sharpness against the steps of all ranks, and the stability limits of gradient descent and of SAM.

    Directional sharpness is drawn where it is positive.

    Args:
        edge: sharpness of the snapshots, and limits at each logged step.
        path: of the figure.
        title: of the figure.
        measured: sharpness that was measured during training, drawn as thin lines. Default: none.
        scale: of the sharpness. Default: logarithmic if all values are above 0.
    """
    with figure(6.5, 4.4) as (drawing, ax):
        ranks = np.unique(edge.rank)
        for i, rank in enumerate(ranks):
            of_rank = edge.rank == rank
            name = f"rank {rank}" if len(ranks) <= MOST_NAMED else f"{len(ranks)} ranks" if i == 0 else "_"
            style = "os^Dv"[i % 5] + "-" if of_rank.sum() <= MOST_MARKED else "-"
            look: dict[str, Any] = {"markersize": 4, "linewidth": 1, "color": COLOURS[i % len(COLOURS)], "label": name}
            ax.plot(edge.total_iteration[of_rank], edge.sharpness[of_rank], style, **look)
        if measured is not None:
            _draw_measured(ax, measured)
        _draw_directional(ax, edge)
        _draw_limits(ax, edge.logged)
        # 2 / lr is unbounded where the learning rate falls to 0.
        ax.set_ylim(top=(1.2 if scale.logarithmic is False else 30) * float(edge.sharpness.max()))
        ax.set(xlabel="steps of all ranks", ylabel="sharpness: largest\neigenvalue (loss / parameter²)")
        ax.set_xscale("symlog", linthresh=10)
        ax.set_xlim(left=0)
        log_ticks(ax.xaxis)
        value_axis(ax, [edge.sharpness], scale, log=True)
        legend(drawing, ax.get_legend_handles_labels()[0])
        heading(drawing, title)
        return save(drawing, path)


def _draw_measured(ax: Any, measured: Edge) -> None:  # noqa: ANN401 (matplotlib's objects)
    for i, rank in enumerate(np.unique(measured.rank)):
        of_rank = measured.rank == rank
        ax.plot(
            measured.total_iteration[of_rank],
            measured.sharpness[of_rank],
            ".-",
            markersize=2,
            linewidth=0.6,
            color=COLOURS[i % len(COLOURS)],
            label="_" if i else "measured in training",
        )


def _draw_directional(ax: Any, edge: Edge) -> None:  # noqa: ANN401 (matplotlib's objects)
    """Draw each rank's directional sharpness and that of its gradient flow's solution, in its colour."""
    for values, mark, label in (
        (edge.update_sharpness, "x", "along the update"),
        (edge.gradient_sharpness, "+", "along -grad f"),
        (edge.flow_sharpness, "D", "at the gradient flow's solution"),
    ):
        shown = np.where(values > 0, values, np.nan)
        for i, rank in enumerate(np.unique(edge.rank)):
            at, colour = edge.rank == rank, COLOURS[i % len(COLOURS)]
            ax.plot(edge.total_iteration[at], shown[at], mark + ":", markersize=4, linewidth=0.5, color=colour)
        if np.isfinite(shown).any():
            ax.plot([], [], mark, markersize=4, color=CENTER, label=label)


def _draw_limits(ax: Any, logged: Limits) -> None:  # noqa: ANN401 (matplotlib's objects)
    """Draw the limits at the logged steps."""
    lines = limit_lines(logged)
    styles: dict[str, tuple[str, str, float]] = {"2 / lr": ("--", CENTER, 1), SAM_LIMIT: ("-.", COLOURS[4], 1)}
    for label, (x, values) in lines.items():
        line, colour, width = styles.get(label, (":", CENTER, 1.5))
        more = f", with momentum {logged.momentum:g}" * bool(logged.momentum and label == SAM_LIMIT)
        ax.plot(x, values, line, linewidth=width, color=colour, label=label + more)


def limit_lines(logged: Limits) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Return steps and limits to draw, by label: 2 / lr, that with momentum, and `SAM_LIMIT`.

    That of SAM, whose gradients are noisy, is its running median.
    """
    every = np.flatnonzero(np.isfinite(logged.lr) & (logged.lr > 0))
    every = every[:: len(every) // MOST_POINTS + 1]
    if not len(every):
        return {}
    x, momentum = logged.total_iteration[every], logged.momentum
    lines = {"2 / lr": (x, logged.limit[every])}
    if momentum:
        lines[f"2 (1 + {momentum:g}) / lr, with momentum"] = x, logged.momentum_limit[every]
    sam = logged.sam_limit[every]
    known = np.isfinite(sam)
    if known.any():
        padded = np.pad(sam[known], MEDIAN_OF // 2, mode="edge")
        lines[SAM_LIMIT] = x[known], np.median(sliding_window_view(padded, MEDIAN_OF), axis=1)
    return lines


def draw_sharpness(
    panels: Mapping[str, Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]],
    path: Path,
    title: str = "",
    *,
    scale: Scale = AUTOMATIC,
) -> Path:
    """Draw sharpness against the radius, one panel per definition and one line per state.

    Args:
        panels: definition -> state -> (rho, sharpness, standard error or NaN).
        path: of the figure.
        title: of the figure.
        scale: of the sharpness. Default: logarithmic if all values are above 0.
    """
    cols = min(2, len(panels))
    rows = -(-len(panels) // cols)
    with figure(3.4 * cols, 0.9 + 2.5 * rows, rows, cols) as (drawing, axes):
        panel_axes = list(np.ravel(axes))
        for ax, (name, states) in zip(panel_axes, panels.items(), strict=False):
            for i, (state, (rho, values, errors)) in enumerate(states.items()):
                colour = COLOURS[i % len(COLOURS)]
                ax.errorbar(
                    rho,
                    values,
                    np.where(np.isfinite(errors), errors, 0),
                    fmt="os^Dv"[i % 5] + ("-", "--", "-.", ":")[i % 4],
                    color=colour,
                    markersize=max(3, 8 - 2 * i),
                    capsize=2,
                    label=state,
                )
            at = np.unique(np.concatenate([rho for rho, _, _ in states.values()]))
            ax.set(title=name, xlabel="radius rho", ylabel="rise of the loss")
            ax.set_xscale("log")
            log_axis(ax.xaxis)
            ax.set_xticks(at[:: -(-len(at) // 6)])
            ax.minorticks_off()
            value_axis(ax, [values for _, values, _ in states.values()], scale, log=True)
        for ax in panel_axes[len(panels) :]:
            ax.set_visible(False)
        legend(drawing, panel_axes[0].get_legend_handles_labels()[0])
        heading(drawing, title)
        return save(drawing, path)
