"""Figures of spectra, of sharpness during training, and of sharpness as a function of the radius."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from lsam_hpc.landscape.curvature.edge_of_stability import Edge, Limits
from lsam_hpc.landscape.curvature.spectral_density import Density
from lsam_hpc.landscape.figures.figures import CENTER, COLOURS, figure, save

MOST_POINTS = 2000  # logged steps drawn
MEDIAN_OF = 21  # drawn steps in the running median of SAM's limit
NAMES = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix"}


def draw_spectra(spectra: Mapping[str, tuple[NDArray[np.float64], Density]], path: Path, title: str = "") -> Path:
    """Draw the spectral density of each matrix, with its largest eigenvalues as ticks.

    Args:
        spectra: name of the matrix -> (largest eigenvalues, or none; density).
        path: of the figure.
        title: of the figure.
    """
    with figure(5.5 * len(spectra), 3.6, 1, len(spectra)) as (drawing, axes):
        for ax, (matrix, (values, density)) in zip(np.ravel(axes), spectra.items(), strict=True):
            at = density.grid()
            ax.semilogy(at, np.maximum(density.smoothed(at), 1e-300), color=COLOURS[0])
            top = float(density.smoothed(at).max())
            ax.set_ylim(top * 1e-7, top * 3)
            if len(values):
                ax.plot(
                    values,
                    np.full(len(values), top * 2e-7),
                    "|",
                    color=COLOURS[4],
                    markersize=12,
                    label=f"{len(values)} largest: {values[0]:.3g} to {values[-1]:.3g}",
                )
                ax.legend(loc="upper right")
            ax.axvline(0, color=CENTER, linewidth=0.5)
            ax.set(title=NAMES[matrix], xlabel="eigenvalue (loss / parameter²)", ylabel="density (share per unit)")
        drawing.suptitle(title)
        return save(drawing, path)


def draw_layers(
    layers: Sequence[str], tops: Mapping[str, NDArray[np.float64]], means: Mapping[str, NDArray[np.float64]], path: Path
) -> Path:
    """Draw the largest and the mean eigenvalue (trace / parameters) of each layer's block, one colour per matrix.

    A panel whose values are empty is left out.
    """
    both = ((tops, "largest eigenvalue of the block"), (means, "mean eigenvalue (trace / parameters)"))
    panels = [(values, label) for values, label in both if all(map(len, values.values()))]
    with figure(4.5 * len(panels), 1.4 + 0.3 * len(layers), 1, len(panels)) as (drawing, axes):
        axes = np.reshape(axes, (1, -1))
        at = np.arange(len(layers))[::-1]
        for ax, (values, label) in zip(axes[0], panels, strict=True):
            for i, (matrix, row) in enumerate(values.items()):
                ax.plot(row, at + 0.12 * i, "os"[i], color=COLOURS[i], label=NAMES[matrix])
            ax.set_yticks(at, layers)
            ax.set_xlabel(label)
            if min(float(np.min(row)) for row in values.values()) > 0:
                ax.set_xscale("log")
        for ax in axes[0, 1:]:
            ax.set_yticklabels([])
        axes[0, 0].legend()
        return save(drawing, path)


def draw_edge(edge: Edge, path: Path, title: str = "", measured: Edge | None = None) -> Path:
    """Draw sharpness against the steps of all ranks, and the stability limits of gradient descent and of SAM.

    Directional sharpness is drawn where it is positive.

    Args:
        edge: sharpness of snapshots.
        path: of the figure.
        title: of the figure.
        measured: sharpness that was measured during training, drawn as thin lines. Default: none.
    """
    with figure(6.5, 4) as (drawing, ax):
        for i, rank in enumerate(np.unique(edge.rank)):
            of_rank = edge.rank == rank
            ax.plot(
                edge.total_iteration[of_rank],
                edge.sharpness[of_rank],
                "o-",
                markersize=3,
                linewidth=1,
                color=COLOURS[i % len(COLOURS)],
                label=f"rank {rank}" if i < 8 else None,
            )
        if measured is not None:
            _draw_measured(ax, measured)
        _draw_directional(ax, edge)
        _draw_limits(ax, edge.logged)
        if (edge.sharpness > 0).all():
            ax.set_yscale("log")
        ax.set_ylim(top=30 * float(edge.sharpness.max()))  # 2 / lr is unbounded where the learning rate falls to 0
        ax.set_xscale("symlog", linthresh=10)
        ax.set_xlim(left=0)
        ax.set(title=title, xlabel="steps of all ranks", ylabel="sharpness: largest eigenvalue (loss / parameter²)")
        ax.legend(fontsize=8)
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
            label="measured in training" if i == 0 else None,
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
    """Draw the limits at the logged steps; that of SAM, whose gradients are noisy, by its running median."""
    every = np.flatnonzero(np.isfinite(logged.lr) & (logged.lr > 0))
    every = every[:: len(every) // MOST_POINTS + 1]
    if not len(every):
        return
    x, momentum = logged.total_iteration[every], logged.momentum
    ax.plot(x, logged.limit[every], "--", linewidth=1, color=CENTER, label="2 / lr")
    if momentum:
        label = f"2 (1 + {momentum:g}) / lr, with momentum"
        ax.plot(x, logged.momentum_limit[every], ":", color=CENTER, label=label)
    sam = logged.sam_limit[every]
    known = np.isfinite(sam)
    if known.any():
        padded = np.pad(sam[known], MEDIAN_OF // 2, mode="edge")
        label = "SAM's limit" + f", with momentum {momentum:g}" * bool(momentum)
        median = np.median(sliding_window_view(padded, MEDIAN_OF), axis=1)
        ax.plot(x[known], median, "-.", linewidth=1, color=COLOURS[4], label=label)


def draw_sharpness(
    panels: Mapping[str, Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]]], path: Path
) -> Path:
    """Draw sharpness against the radius, one panel per definition and one line per state.

    Args:
        panels: definition -> state -> (rho, sharpness, standard error or NaN).
        path: of the figure.
    """
    cols = min(2, len(panels))
    rows = -(-len(panels) // cols)
    with figure(4.5 * cols, 3.2 * rows, rows, cols) as (drawing, axes):
        panel_axes = list(np.ravel(axes))
        for ax, (name, states) in zip(panel_axes, panels.items(), strict=False):
            for i, (state, (rho, values, errors)) in enumerate(states.items()):
                colour = COLOURS[i % len(COLOURS)]
                ax.errorbar(
                    rho,
                    values,
                    np.where(np.isfinite(errors), errors, 0),
                    fmt="os^Dv"[i % 5] + "-",
                    color=colour,
                    markersize=max(3, 8 - 2 * i),
                    capsize=2,
                    label=state,
                )
            ax.set_xscale("log")
            at = np.unique(np.concatenate([rho for rho, _, _ in states.values()]))
            ax.set_xticks(at, [f"{rho:g}" for rho in at])
            ax.minorticks_off()
            if all((values > 0).all() for _, values, _ in states.values()):
                ax.set_yscale("log")
            ax.set(title=name, xlabel="radius rho", ylabel="rise of the loss")
            ax.legend()
        for ax in panel_axes[len(panels) :]:
            ax.set_visible(False)
        return save(drawing, path)
