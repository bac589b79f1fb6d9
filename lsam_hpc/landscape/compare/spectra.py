"""Spectra of several runs: densities and eigenvalues in common axes, layers, and sharpness during training."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lsam_hpc.landscape.compare.comparison import Case, Comparison, named, of_rows
from lsam_hpc.landscape.curvature.spectral_density import Density
from lsam_hpc.landscape.figures.draw_curvature import NAMES
from lsam_hpc.landscape.figures.figures import CENTER, figure, save
from lsam_hpc.landscape.figures.scales import log_axis, log_ticks

DECADES = 7.0  # of the density below its largest value that are drawn
WHOLE = "all"  # name of the whole matrix
FILE, EDGE = ".h5", "-edge.csv"
Block = Mapping[str, NDArray[np.float64]]


def compare_spectra(cases: Sequence[Case], title: str) -> Comparison:
    """Return the comparison of eigenvalues, traces and densities, from the .h5 files."""
    spectra = [_read(case.file(FILE)) for case in cases]
    rows = [
        {"run": case.run, "split": case.split, **_numbers(key, block)}
        for key in _keys(spectra)
        for case, blocks in zip(cases, spectra, strict=True)
        if (block := blocks.get(key)) is not None
    ]
    return Comparison(*of_rows(rows), partial(_draw, list(zip(cases, spectra, strict=True)), title))


def _keys(spectra: Sequence[Mapping[str, Block]]) -> list[str]:
    """Return the names of the blocks of all spectra: different models have different layers."""
    return list(dict.fromkeys(key for blocks in spectra for key in blocks))


def _read(path: Path) -> dict[str, Block]:
    """Return the arrays of each block, by matrix/layer."""
    blocks: dict[str, dict[str, NDArray[np.float64]]] = {}

    def visit(name: str, stored: object) -> None:
        if isinstance(stored, h5py.Dataset):
            matrix, _, rest = name.partition("/")
            layer, _, kind = rest.partition("/")
            if kind != "eigenvectors":
                blocks.setdefault(f"{matrix}/{layer}", {})[kind] = np.asarray(stored[()], np.float64)

    with h5py.File(path) as file:
        file.visititems(visit)
    return {key: blocks[key] for key in sorted(blocks, key=lambda key: (key.split("/")[1] != WHOLE, key[0] != "h"))}


def _numbers(key: str, block: Block) -> dict[str, Any]:
    matrix, _, layer = key.partition("/")
    values, nodes = block.get("eigenvalues", np.empty(0)), block.get("density/nodes", np.empty(0))
    return {
        "matrix": matrix,
        "layer": layer,
        "largest": float(values[0]) if len(values) else np.nan,
        "second": float(values[1]) if len(values) > 1 else np.nan,
        "smallest": float(block["smallest"][0]) if "smallest" in block else np.nan,
        "trace": float(block.get("trace", np.nan)),
        "+-": float(block.get("trace_error", np.nan)),
        "smallest_node": float(nodes[0]) if len(nodes) else np.nan,
    }


def _draw(spectra: Sequence[tuple[Case, Mapping[str, Block]]], title: str, path: Path) -> Path:
    """Draw a panel for each matrix, and below it the largest eigenvalue of each layer, if layers were analysed."""
    keys = _keys([blocks for _, blocks in spectra])
    matrices = list(dict.fromkeys(key.split("/")[0] for key in keys))
    layers = [key.split("/")[1] for key in keys if key.startswith(matrices[0]) and not key.endswith(f"/{WHOLE}")]
    heights = [3.6, *([0.8 + 0.25 * len(layers)] if layers else [])]
    with figure(4.8 * len(matrices), 0.7 + sum(heights), len(heights), len(matrices)) as (drawing, grid):
        grid = np.reshape(grid, (len(heights), len(matrices)))
        grid[0, 0].get_gridspec().set_height_ratios(heights)
        for column, matrix in zip(grid.T, matrices, strict=True):
            of_matrix = [(case, blocks.get(f"{matrix}/{WHOLE}", {})) for case, blocks in spectra]
            (_densities if all("density/nodes" in block for _, block in of_matrix) else _largest)(column[0], of_matrix)
            column[0].set_title(NAMES[matrix])
            if layers:
                _layers(column[1], [(case, blocks) for case, blocks in spectra], matrix, layers)
        for axis in grid[1:, 1:].reshape(-1):
            axis.tick_params(labelleft=False)
        if layers:
            grid[1, 0].set_ylabel("layer or class" if any("class " in name for name in layers) else "layer")
        for row, low in zip(grid, ("y", "x"), strict=False):
            limits = [getattr(axis, f"get_{low}lim")() for axis in row]
            for axis in row:
                getattr(axis, f"set_{low}lim")(min(a for a, _ in limits), max(b for _, b in limits))
        names = named([case for case, _ in spectra])
        drawing.legend(grid[0, 0].lines[: len(names)], names, loc="outside lower center", ncols=4)
        drawing.suptitle(title)
        return save(drawing, path)


def _densities(axis: Any, spectra: Sequence[tuple[Case, Block]]) -> None:  # noqa: ANN401 (matplotlib's objects)
    """Draw densities over each other, and the largest eigenvalues as a row of ticks for each case."""
    curves = []
    for case, block in spectra:
        density = Density(block["density/nodes"], block["density/weights"])
        at = np.linspace(density.nodes[0] - 7 * density.width, density.nodes[-1] + 7 * density.width, 2000)
        curves.append((case, at, density.smoothed(at), block.get("eigenvalues", np.empty(0))))
    top = max(float(values.max()) for _, _, values, _ in curves)
    floor = top * 10**-DECADES
    for case, at, values, _ in curves:
        axis.plot(at, np.where(values > floor, values, np.nan), linewidth=1.3, **case.style)
    step = 10 ** (0.06 * DECADES)
    for i, (case, _, _, eigenvalues) in enumerate(curves, 1):
        axis.plot(eigenvalues, np.full(len(eigenvalues), floor / step**i), "|", color=case.style["color"], markersize=8)
    axis.axhline(floor, color=CENTER, linewidth=0.5)
    axis.axvline(0, color=CENTER, linewidth=0.5)
    axis.set_ylim(floor / step ** (len(curves) + 1), 3 * top)
    axis.set(xlabel="eigenvalue (loss / parameter²)", ylabel="density (share per unit)")
    log_axis(axis.yaxis)


def _largest(axis: Any, spectra: Sequence[tuple[Case, Block]]) -> None:  # noqa: ANN401 (matplotlib's objects)
    """Draw the largest eigenvalues by their number."""
    for case, block in spectra:
        values = block.get("eigenvalues", np.empty(0))
        axis.plot(np.arange(1, len(values) + 1), values, marker="o", markersize=4, **case.style)
    axis.set(xlabel="number of the eigenvalue", ylabel="eigenvalue (loss / parameter²)")
    axis.xaxis.get_major_locator().set_params(integer=True)


def _layers(
    axis: Any,  # noqa: ANN401 (matplotlib's objects)
    spectra: Sequence[tuple[Case, Mapping[str, Block]]],
    matrix: str,
    layers: Sequence[str],
) -> None:
    at = np.arange(len(layers))[::-1]
    for case, blocks in spectra:
        of_layers = [blocks.get(f"{matrix}/{layer}", {}) for layer in layers]
        tops = [float(block.get("eigenvalues", np.full(1, np.nan))[0]) for block in of_layers]
        axis.plot(tops, at, "s" if case.style["linestyle"] == "--" else "o", color=case.style["color"], markersize=5)
    axis.set_yticks(at, layers)
    axis.set_ylim(-0.6, len(layers) - 0.4)
    axis.set_xlabel("largest eigenvalue of the block")
    log_axis(axis.xaxis)


def compare_edges(cases: Sequence[Case], title: str) -> Comparison:
    """Return the comparison of the largest eigenvalue at the snapshots, from the -edge.csv files."""
    edges = [_columns(case.file(EDGE)) for case in cases]
    rows = []
    for case, edge in zip(cases, edges, strict=True):
        top, ratio = edge["sharpness"], edge["sharpness"] / edge["momentum_limit"]
        after = edge["total_iteration"]
        rows.append(
            {
                "run": case.run,
                "split": case.split,
                "snapshots": len(top),
                "first": float(top[0]),
                "largest": float(top.max()),
                "after_steps": float(after[top.argmax()]),
                "last": float(top[np.flatnonzero(after == np.nanmax(after))[0]]),
                "most_of_limit": float(np.nanmax(ratio)) if np.isfinite(ratio).any() else np.nan,
            }
        )
    return Comparison(*of_rows(rows), partial(_draw_edges, list(zip(cases, edges, strict=True)), title))


def _columns(path: Path) -> dict[str, NDArray[np.float64]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}


def _draw_edges(edges: Sequence[tuple[Case, Mapping[str, NDArray[np.float64]]]], title: str, path: Path) -> Path:
    from matplotlib.lines import Line2D

    with figure(6.5, 4.2) as (drawing, axis):
        handles, with_sam = [], False
        for (case, edge), name in zip(edges, named([case for case, _ in edges]), strict=True):
            for rank in np.unique(edge["rank"]):
                row = edge["rank"] == rank
                at = edge["total_iteration"][row]
                axis.plot(at, edge["sharpness"][row], marker="o", markersize=3, linewidth=1, **case.style)
            order = np.argsort(edge["total_iteration"])
            limit = (edge["total_iteration"][order], edge["momentum_limit"][order])
            axis.plot(*limit, color=case.style["color"], linestyle=":", linewidth=1)
            sam = edge["sam_limit"][order]
            with_sam |= bool(np.isfinite(sam).any())
            axis.plot(limit[0], sam, color=case.style["color"], linestyle=(0, (5, 3)), linewidth=0.8)
            handles.append(Line2D([], [], label=name, marker="o", markersize=3, **case.style))
        handles.append(Line2D([], [], color="grey", linestyle=":", label="its limit, 2 (1 + momentum) / lr"))
        if with_sam:
            handles.append(Line2D([], [], color="grey", linestyle=(0, (5, 3)), linewidth=0.8, label="SAM's limit"))
        largest = max(float(edge["sharpness"].max()) for _, edge in edges)
        positive = all((edge["sharpness"] > 0).all() for _, edge in edges)
        axis.set(xlabel="steps of all ranks", ylabel="largest eigenvalue (loss / parameter²)")
        axis.set_ylim(top=30 * largest)
        if positive:
            log_axis(axis.yaxis)
        axis.set_xscale("symlog", linthresh=10)
        axis.set_xlim(left=0)
        log_ticks(axis.xaxis)
        drawing.legend(handles=handles, loc="outside lower center", ncols=3)
        drawing.suptitle(title)
        return save(drawing, path)
