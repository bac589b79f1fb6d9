"""The files of `lsam spectrum`: the printed table, CSV, HDF5 and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.landscape.curvature.blocks import Block
from lsam_hpc.landscape.curvature.edge_of_stability import Edge
from lsam_hpc.landscape.curvature.gradient_flow import Flow
from lsam_hpc.landscape.curvature.results import ALL, DENSITY, EIGENVALUES, SMALLEST, TRACE, WHOLE, Spectrum
from lsam_hpc.landscape.figures.draw_curvature import draw_edge
from lsam_hpc.landscape.figures.redraw import redraw
from lsam_hpc.landscape.figures.scales import AUTOMATIC
from lsam_hpc.landscape.figures.stored import CLASS, read
from lsam_hpc.landscape.report.tables import write_arrays, write_csv
from lsam_hpc.util.text import columns


def table(blocks: Sequence[Block], spectra: Sequence[Spectrum], samples: int, classes: Mapping[str, int]) -> str:
    """Return the table that is printed, one row per block; a dash for what was not asked for.

    Args:
        blocks: what was computed.
        spectra: the results.
        samples: their number.
        classes: number of samples of each class; empty if the table needs no column for them.
    """
    low = ("smallest", "-smallest/largest") if any(len(s.smallest) for s in spectra) else ()
    head = ("parameters", "largest", "second", *low, "trace", "+-", "smallest node")
    rows = [("matrix", "layer", *(("class", "samples") if classes else ()), *head)]
    for block, spectrum in zip(blocks, spectra, strict=True):
        values, trace, density = spectrum.values, spectrum.trace, spectrum.density
        rows.append(
            (
                block.matrix,
                block.layer,
                *((block.group, f"{classes.get(block.group, samples):,}") if classes else ()),
                f"{block.size:,}",
                f"{values[0]:.5g}" if len(values) else "-",
                f"{values[1]:.5g}" if len(values) > 1 else "-",
                *_low(spectrum)[: len(low)],
                f"{trace.value:.5g}" if trace else "-",
                f"{trace.error:.2g}" if trace else "-",
                f"{density.nodes[0]:.4g}" if density else "-",
            )
        )
    return columns(rows)


def _low(spectrum: Spectrum) -> tuple[str, str]:
    lowest = f"{spectrum.smallest[0]:.5g}" if len(spectrum.smallest) else "-"
    return lowest, "-" if np.isnan(spectrum.ratio) else f"{spectrum.ratio:.4g}"


def suffixes(blocks: Sequence[Block], format_: str, *, along: bool, flow: bool) -> list[str]:
    """Return the suffixes of the files for what was asked for."""
    kinds = {kind for block in blocks for kind in block.kinds}
    figure = f".{format_}"
    names = {
        figure: any(DENSITY in block.kinds for block in blocks if block.layer == WHOLE),
        ".h5": bool(blocks),
        "-eigenvalues.csv": bool(kinds & {EIGENVALUES, SMALLEST}),
        "-traces.csv": TRACE in kinds,
        "-density.csv": DENSITY in kinds,
        f"-classes{figure}": any(
            block.group != ALL and {DENSITY, EIGENVALUES, SMALLEST} & set(block.kinds) for block in blocks
        ),
        f"-layers{figure}": _in_layers(blocks, EIGENVALUES) or _in_layers(blocks, TRACE),
        f"-edge{figure}": along,
        "-edge.h5": along,
        "-edge.csv": along,
        "-flow.csv": flow,
    }
    return [name for name, written in names.items() if written]


def write(
    out: dict[str, Path], blocks: Sequence[Block], spectra: Sequence[Spectrum], notes: dict[str, Any], *, format_: str
) -> None:
    """Write numbers and figures.

    Args:
        out: the files by their suffixes.
        blocks: what was computed.
        spectra: the results.
        notes: how they were made.
        format_: of the figures.
    """
    each = list(zip(blocks, spectra, strict=True))
    _write_tables(out, each)
    arrays: dict[str, Any] = {}
    for b, s in each:
        at = f"{b.matrix}/{b.layer}" if b.group == ALL else f"{b.matrix}/{CLASS}{b.group}"
        arrays[f"{at}/parameters"] = b.size
        if len(s.values):
            arrays[f"{at}/eigenvalues"] = s.values
        if len(s.smallest):
            arrays[f"{at}/smallest"] = s.smallest
        if s.trace:
            arrays |= {f"{at}/trace": s.trace.value, f"{at}/trace_error": s.trace.error}
        if s.density:
            arrays |= {
                f"{at}/density/nodes": s.density.nodes,
                f"{at}/density/weights": s.density.weights,
                f"{at}/density/width": s.density.width,
            }
        if s.vectors.size:
            arrays[f"{at}/eigenvectors"] = s.vectors
    title, matrices = notes["title"], list(dict.fromkeys(b.matrix for b in blocks))
    layers = list(dict.fromkeys(b.layer for b in blocks if b.layer != WHOLE))
    figure_notes = {"kind": "spectrum", "title": title, "matrices": matrices, "layers": layers}
    write_arrays(out[".h5"], arrays, {**notes, "figure": figure_notes})
    stored = read(out[".h5"])
    redraw(stored, {end: out[f"{end}.{format_}"] for end in stored.suffixes}, AUTOMATIC)


def write_edge(
    out: dict[str, Path], along: Edge, title: str, *, format_: str, flow: bool, measured: Edge | None = None
) -> None:
    """Write and draw the sharpness of the snapshots, with `flow` also of the solutions; draw that of training."""
    names = ["rank", "iteration", "total_iteration", "sharpness", "update_sharpness", "gradient_sharpness"]
    names += ["flow_sharpness"] if flow else []
    names += ["lr", "limit", "momentum_limit", "ratio", "sam_limit"]
    write_csv(out["-edge.csv"], {name: getattr(along, name) for name in names})
    own = ("rank", "iteration", "sharpness", "update_sharpness", "gradient_sharpness", "flow_sharpness")
    limits = ("total_iteration", "lr", "ratio")
    arrays = {name: getattr(along, name) for name in (*own, *limits)}
    arrays |= {f"logged/{name}": getattr(along.logged, name) for name in limits}
    if measured is not None:
        arrays |= {f"measured/{name}": getattr(measured, name) for name in (*own, *limits)}
    figure = {"kind": "edge", "title": title, "momentum": along.momentum}
    write_arrays(out["-edge.h5"], arrays, {"figure": figure})
    draw_edge(along, out[f"-edge.{format_}"], title, measured)


def write_flow(out: dict[str, Path], flow: Flow, before: float) -> str:
    """Write the gradient flow's steps; return the line that is printed.

    Args:
        out: the files by their suffixes.
        flow: the result.
        before: sharpness at the flow's start.
    """
    sharpness = np.full(len(flow.times), np.nan)
    sharpness[-1], sharpness[0] = flow.sharpness, before if len(flow.times) > 1 else flow.sharpness
    steps = {"time": flow.times, "loss": flow.losses, "gradient_norm": flow.norms, "sharpness": sharpness}
    write_csv(out["-flow.csv"], steps)
    loss = f"loss {flow.losses[0]:.5g} -> {flow.losses[-1]:.5g}"
    if flow.converged:
        effort = f"time {flow.times[-1]:.4g}, {flow.gradients:,} gradients"
        values = f"sharpness of the solution {flow.sharpness:.6g}, at the state {before:.6g}"
        return f"gradient flow: {values}; {loss}, {effort}"
    return (
        f"gradient flow: not converged in {flow.gradients:,} gradients (--flow-gradients): {loss}, |g| "
        f"{flow.norms[-1]:.3g}, about {flow.remaining:.3g} from its solution, whose sharpness is unknown"
    )


def _in_layers(blocks: Sequence[Block], kind: str) -> bool:
    return any(kind in block.kinds for block in blocks if block.layer != WHOLE)


def _numbered(block: Block, spectrum: Spectrum) -> list[tuple[int, float]]:
    """Return the eigenvalues with their places in descending order, from 1 to the number of parameters."""
    places = {i + 1: float(value) for i, value in enumerate(spectrum.values)}
    for i, value in enumerate(spectrum.smallest):
        places.setdefault(block.size - i, float(value))
    return sorted(places.items())


def _write_tables(out: dict[str, Path], each: Sequence[tuple[Block, Spectrum]]) -> None:
    rows: dict[str, tuple[tuple[str, ...], list[tuple[Any, ...]]]] = {
        "-eigenvalues.csv": (
            ("matrix", "layer", "class", "number", "eigenvalue"),
            [(b.matrix, b.layer, b.group, *pair) for b, s in each for pair in _numbered(b, s)],
        ),
        "-traces.csv": (
            ("matrix", "layer", "class", "parameters", "trace", "standard_error"),
            [(b.matrix, b.layer, b.group, b.size, s.trace.value, s.trace.error) for b, s in each if s.trace],
        ),
        "-density.csv": (
            ("matrix", "layer", "class", "node", "weight"),
            [
                (b.matrix, b.layer, b.group, node, weight)
                for b, s in each
                if s.density
                for node, weight in zip(s.density.nodes, s.density.weights, strict=True)
            ],
        ),
    }
    for suffix, (head, lines) in rows.items():
        if suffix in out:
            write_csv(out[suffix], dict(zip(head, zip(*lines, strict=True), strict=True)))
