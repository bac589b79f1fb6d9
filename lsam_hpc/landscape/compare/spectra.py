"""Spectra of several runs: densities and eigenvalues in common axes, layers, and sharpness during training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.landscape.compare.comparison import Case, Comparison, named, of_rows
from lsam_hpc.landscape.curvature.edge_of_stability import Edge
from lsam_hpc.landscape.curvature.results import WHOLE, Spectrum
from lsam_hpc.landscape.figures.draw_curvature import NAMES, SAM_LIMIT, draw_densities, limit_lines
from lsam_hpc.landscape.figures.figures import CENTER, figure, save
from lsam_hpc.landscape.figures.scales import log_axis, log_ticks
from lsam_hpc.landscape.figures.stored import CLASS, Stored, edge_of, spectra_of

FILE, EDGE = ".h5", "-edge.h5"
Blocks = Mapping[tuple[str, str], Spectrum]


def compare_spectra(cases: Sequence[Case], numbers: Sequence[Stored], how: Mapping[str, Any]) -> Comparison:
    """Return the comparison of eigenvalues, traces and densities; `how` has the title."""
    spectra = list(map(spectra_of, numbers))
    rows = [
        {"run": case.run, "split": case.split, **_numbers(key, blocks[key])}
        for key in _keys(spectra)
        for case, blocks in zip(cases, spectra, strict=True)
        if key in blocks
    ]
    return Comparison(*of_rows(rows), partial(_draw, list(zip(cases, spectra, strict=True)), how["title"]))


def _keys(spectra: Sequence[Blocks]) -> list[tuple[str, str]]:
    """Return the blocks of all spectra, whole matrices first: different models have different layers."""
    keys = dict.fromkeys(key for blocks in spectra for key in blocks)
    return sorted(keys, key=lambda key: key[1] != WHOLE)


def _numbers(key: tuple[str, str], s: Spectrum) -> dict[str, Any]:
    return {
        "matrix": key[0],
        "layer": key[1],
        "largest": float(s.values[0]) if len(s.values) else np.nan,
        "second": float(s.values[1]) if len(s.values) > 1 else np.nan,
        "smallest": float(s.smallest[0]) if len(s.smallest) else np.nan,
        "trace": s.trace.value if s.trace else np.nan,
        "+-": s.trace.error if s.trace else np.nan,
        "smallest_node": float(s.density.nodes[0]) if s.density else np.nan,
    }


def _draw(spectra: Sequence[tuple[Case, Blocks]], title: str, path: Path) -> Path:
    """Draw a panel for each matrix, and below it the largest eigenvalue of each layer, if layers were analysed."""
    keys = _keys([blocks for _, blocks in spectra])
    matrices = list(dict.fromkeys(matrix for matrix, _ in keys))
    layers = [layer for matrix, layer in keys if matrix == matrices[0] and layer != WHOLE]
    heights = [3.6, *([0.8 + 0.25 * len(layers)] if layers else [])]
    with figure(4.8 * len(matrices), 0.7 + sum(heights), len(heights), len(matrices)) as (drawing, grid):
        grid = np.reshape(grid, (len(heights), len(matrices)))
        grid[0, 0].get_gridspec().set_height_ratios(heights)
        for column, matrix in zip(grid.T, matrices, strict=True):
            whole = [(case, blocks[matrix, WHOLE]) for case, blocks in spectra if (matrix, WHOLE) in blocks]
            (_densities if all(s.density for _, s in whole) else _largest)(column[0], whole)
            column[0].set_title(NAMES[matrix])
            if layers:
                _layers(column[1], spectra, matrix, layers)
        for axis in grid[1:, 1:].reshape(-1):
            axis.tick_params(labelleft=False)
        if layers:
            grid[1, 0].set_ylabel("layer or class" if any(name.startswith(CLASS) for name in layers) else "layer")
        for row, low in zip(grid, ("y", "x"), strict=False):
            limits = [getattr(axis, f"get_{low}lim")() for axis in row]
            for axis in row:
                getattr(axis, f"set_{low}lim")(min(a for a, _ in limits), max(b for _, b in limits))
        names = named([case for case, _ in spectra])
        drawing.legend(grid[0, 0].lines[: len(names)], names, loc="outside lower center", ncols=4)
        drawing.suptitle(title)
        return save(drawing, path)


def _densities(axis: Any, spectra: Sequence[tuple[Case, Spectrum]]) -> None:  # noqa: ANN401 (matplotlib's objects)
    """Draw densities over each other, and below them the largest eigenvalues as a row of ticks for each case."""
    draw_densities(axis, [(s.density, {"linewidth": 1.3, **case.style}) for case, s in spectra if s.density])
    floor, top = axis.get_ylim()
    step = (top / floor) ** 0.06
    for i, (case, s) in enumerate(spectra, 1):
        at = np.full(len(s.values), floor / step**i)
        axis.plot(s.values, at, "|", color=case.style["color"], markersize=8)
    axis.axhline(floor, color=CENTER, linewidth=0.5)
    axis.axvline(0, color=CENTER, linewidth=0.5)
    axis.set_ylim(floor / step ** (len(spectra) + 1), top)


def _largest(axis: Any, spectra: Sequence[tuple[Case, Spectrum]]) -> None:  # noqa: ANN401 (matplotlib's objects)
    """Draw the largest eigenvalues by their number."""
    for case, s in spectra:
        axis.plot(np.arange(1, len(s.values) + 1), s.values, marker="o", markersize=4, **case.style)
    axis.set(xlabel="number of the eigenvalue", ylabel="eigenvalue (loss / parameter²)")
    axis.xaxis.get_major_locator().set_params(integer=True)


def _layers(axis: Any, spectra: Sequence[tuple[Case, Blocks]], matrix: str, layers: Sequence[str]) -> None:  # noqa: ANN401 (matplotlib's objects)
    at = np.arange(len(layers))[::-1]
    for case, blocks in spectra:
        of_layers = [blocks.get((matrix, layer)) for layer in layers]
        tops = [float(s.values[0]) if s and len(s.values) else np.nan for s in of_layers]
        axis.plot(tops, at, "s" if case.style["linestyle"] == "--" else "o", color=case.style["color"], markersize=5)
    axis.set_yticks(at, layers)
    axis.set_ylim(-0.6, len(layers) - 0.4)
    axis.set_xlabel("largest eigenvalue of the block")
    log_axis(axis.xaxis)


def compare_edges(cases: Sequence[Case], numbers: Sequence[Stored], how: Mapping[str, Any]) -> Comparison:
    """Return the comparison of the largest eigenvalue while training; `how` has the title, and what was `counted`."""
    edges = [edge_of(stored)[0] for stored in numbers]
    rows = []
    for case, edge in zip(cases, edges, strict=True):
        top, ratio, after = edge.sharpness, edge.sharpness / edge.momentum_limit, edge.total_iteration
        rows.append(
            {
                "run": case.run,
                "split": case.split,
                how["counted"]: len(top),
                "first": float(top[0]),
                "largest": float(top.max()),
                "after_steps": float(after[top.argmax()]),
                "last": float(top[np.flatnonzero(after == np.nanmax(after))[0]]),
                "most_of_limit": float(np.nanmax(ratio)) if np.isfinite(ratio).any() else np.nan,
            }
        )
    return Comparison(*of_rows(rows), partial(_draw_edges, list(zip(cases, edges, strict=True)), how["title"]))


def _draw_edges(edges: Sequence[tuple[Case, Edge]], title: str, path: Path) -> Path:
    """Draw the sharpness of each run's ranks in the run's colour, and the limits that single runs' figures have."""
    from matplotlib.lines import Line2D

    with figure(6.5, 4.4) as (drawing, axis):
        handles, limits = [], {}
        for (case, edge), name in zip(edges, named([case for case, _ in edges]), strict=True):
            for rank in np.unique(edge.rank):
                row = edge.rank == rank
                at = edge.total_iteration[row]
                axis.plot(at, edge.sharpness[row], marker="o", markersize=3, linewidth=1, **case.style)
            lines = limit_lines(edge.logged)
            if edge.momentum:
                lines.pop("2 / lr", None)  # the one that holds is with momentum
            for label, (x, values) in lines.items():
                look: dict[str, Any] = {"linestyle": "-." if label == SAM_LIMIT else ":", "linewidth": 1}
                axis.plot(x, values, color=case.style["color"], **look)
                limits[label] = Line2D([], [], color="grey", label=label, **look)
            handles.append(Line2D([], [], label=name, marker="o", markersize=3, **case.style))
        largest = max(float(edge.sharpness.max()) for _, edge in edges)
        positive = all((edge.sharpness > 0).all() for _, edge in edges)
        axis.set(xlabel="steps of all ranks", ylabel="largest eigenvalue (loss / parameter²)")
        axis.set_ylim(top=30 * largest)
        if positive:
            log_axis(axis.yaxis)
        axis.set_xscale("symlog", linthresh=10)
        axis.set_xlim(left=0)
        log_ticks(axis.xaxis)
        drawing.legend(handles=[*handles, *limits.values()], loc="outside lower center", ncols=3)
        drawing.suptitle(title)
        return save(drawing, path)
