"""The figures in a run's folder, with captions from the numbers beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.figures.draw_surface import TITLES
from lsam_hpc.landscape.geometry.surface import LOSSES
from lsam_hpc.landscape.report.captions import data_of, losses_of
from lsam_hpc.landscape.report.report import KINDS, LINKED, Picture, link, picture
from lsam_hpc.landscape.report.tables import NOTES
from lsam_hpc.trajectory.openfile import DAMAGE, opened


def pictures(folder: Path, page: Path, drawn: Sequence[str] = ()) -> list[Picture]:
    """Return the figures in a folder, in the order of their names; one that exists as PDF only is a link.

    Args:
        folder: RUN/figures; it need not exist.
        page: file that will show them.
        drawn: names of figures without suffix that the page has drawn itself.
    """
    files = sorted(f for f in folder.iterdir() if f.suffix in (*KINDS, LINKED)) if folder.is_dir() else []
    made: dict[str, Picture] = {}
    for file in sorted(files, key=lambda f: f.suffix == LINKED):  # .png before .svg before .pdf
        if file.stem not in drawn and file.stem not in made:
            text = caption(file)
            alt = f"Figure {file.stem}. {text}"
            made[file.stem] = link(file, page, alt, text) if file.suffix == LINKED else picture(file, alt, text)
    return [made[stem] for stem in sorted(made)]


def caption(figure: Path) -> str:
    """Return what a figure shows, from the HDF5 file beside it, and the names of its files."""
    numbers = next((path for path in _beside(figure) if path.exists()), None)
    said = ""
    if numbers is not None:
        try:
            with opened(numbers) as (file, _):
                said = _said(file, json.loads(str(file.attrs.get(NOTES, "{}"))))
        except (InputError, *DAMAGE):
            said = f"{numbers.name} is damaged."
    tables = sorted(path.name for path in figure.parent.glob(f"{figure.stem}*.csv"))
    numbered = f"; numbers: figures/{', figures/'.join(tables)}" if tables else ""
    return " ".join(part for part in (said, f"File: figures/{figure.name}{numbered}.") if part)


def _beside(figure: Path) -> list[Path]:
    stem = figure.stem
    names = dict.fromkeys((stem, *(stem.removesuffix(suffix) for suffix in ("-layers", "-classes", "-3d"))))
    return [figure.with_name(f"{name}.h5") for name in names]


def _said(file: h5py.File, notes: Mapping[str, Any]) -> str:
    """Return what the numbers say, by what kind they are; empty for unknown kinds."""
    for name, say in (
        ("xcoordinates", _surface),
        ("hessian/all/eigenvalues", _spectrum),
        ("case", _sharpness),
        ("barrier", _barriers),
        ("off_plane", _tracks),
        ("predictor", _predictions),
        ("saddle_at", _basins),
        ("cosines", _outliers),
        ("half_parameters", _learning_coefficients),
    ):
        if name in file:
            return say(file, notes)
    return ""


def _surface(file: h5py.File, notes: Mapping[str, Any]) -> str:
    where = f"around the state {notes['at']}" if "at" in notes else "around a state"
    parts = []
    for name in sorted(file):
        column = name.partition("_")[2]  # after the split
        if column in LOSSES:
            values = file[name][()]
            known = values[values != -1]
            if len(known):
                parts.append(f"{TITLES[column]} from {known.min():.3g} to {known.max():.3g}")
    grid = " x ".join(str(len(file[name])) for name in ("xcoordinates", "ycoordinates") if name in file)
    along = {"random": "random", "pca": "principal", "eigenvector": "eigenvector"}.get(str(notes.get("directions")))
    directions = f", {along} directions" if along else ""
    return f"The landscape {where} at {grid} points{directions}: {', '.join(parts)} ({losses_of(notes)})."


def _spectrum(file: h5py.File, notes: Mapping[str, Any]) -> str:
    values = file["hessian/all/eigenvalues"][()]
    shown = ", ".join(f"{value:.3g}" for value in values[:3])
    text = f"Curvature at the state {notes.get('at', 'center')}: largest eigenvalues of the Hessian {shown}"
    if "hessian/all/trace" in file:
        trace, error = (float(file[f"hessian/all/{name}"][()]) for name in ("trace", "trace_error"))
        text += f", trace {trace:.3g} ± {error:.1g}"
    return f"{text} ({losses_of(notes)})."


def _sharpness(file: h5py.File, notes: Mapping[str, Any]) -> str:
    table = {name: file[name].asstr()[()] for name in ("state", "case", "norm")}
    rho, rise = file["rho"][()], file["sharpness"][()]
    texts = []
    for case, norm in dict.fromkeys(zip(table["case"], table["norm"], strict=True)):
        of_kind = (table["case"] == case) & (table["norm"] == norm)
        radius = rho[of_kind].max()
        chosen = np.flatnonzero(of_kind & (rho == radius))
        rises = ", ".join(f"{rise[i]:.3g} at {table['state'][i]}" for i in chosen)
        texts.append(f"{rises} ({case} case, {norm} norm, radius {radius:.3g})")
    return f"Rise of the loss when the parameters move within a ball: {'; '.join(texts)}; {losses_of(notes)}."


def _barriers(file: h5py.File, notes: Mapping[str, Any]) -> str:
    barrier, names = np.asarray(file["barrier"][()], float), list(file["names"].asstr()[()])
    if barrier.ndim != 2:
        return f"The loss between states ({losses_of(notes)})."
    highest = np.nanmax(barrier)
    i, j = np.unravel_index(np.nanargmax(barrier), barrier.shape)
    if highest > 0:
        between = f"the highest is {highest:.3g}, between {names[i]} and {names[j]}"
    else:
        between = "none between any two of them"
    return f"Loss barriers between {', '.join(names)}: {between} ({losses_of(notes)})."


def _tracks(file: h5py.File, notes: Mapping[str, Any]) -> str:
    off, objective = file["off_plane"][()], notes.get("objective")
    return (
        f"Samples and center on the axes {', '.join(map(str, notes.get('labels', [])[:2]))}; the states are "
        f"{np.median(off):.3g} off this plane (median)"
        f"{f'; losses: {losses_of(objective)}' if objective else ''}."
    )


def _predictions(file: h5py.File, notes: Mapping[str, Any]) -> str:
    names, error, nll, ece = (file[name][()] for name in ("predictor", "error", "nll", "ece"))
    texts = [name.decode() for name in names]
    rows = [
        f"{text}: {error[i]:.2f} % wrong, NLL {nll[i]:.3g}, calibration error {ece[i]:.2g}"
        for i, text in enumerate(texts)
    ]
    best = f" The lowest NLL is that of {texts[int(np.argmin(nll))]}." if len(texts) > 1 else ""
    return f"Accuracy against confidence of predictions of {data_of(notes)}: {'; '.join(rows)}.{best}"


def _basins(file: h5py.File, notes: Mapping[str, Any]) -> str:
    names, value, saddle = file["values"].asstr()[()], file["value"][()], file["saddle"][()]
    texts = []
    for name in dict.fromkeys(names):
        own = names == name
        heights = (saddle - value)[own]
        text = f"{name} has {_count(int(own.sum()), 'basin')}, its lowest minimum {value[own].min():.3g}"
        if np.isfinite(heights).any():
            text += f", and the way out of the next deepest one rises by {np.nanmax(heights):.3g}"
        texts.append(text)
    where = Path(str(notes.get("surface", ""))).name
    return f"Minima (circles) and saddles (crosses) of {where}, and the tree in which basins merge: {'; '.join(texts)}."


def _outliers(file: h5py.File, notes: Mapping[str, Any]) -> str:
    before, after, cosines = (file[name][()] for name in ("before", "after", "cosines"))
    change, shown = after - before, np.r_[file["rising"][()], file["falling"][()]]
    share = np.abs(change[shown]).sum() / max(float(np.abs(change).sum()), 1e-300)
    pairs = file["pairs"][()]
    opposed = f"; the most opposed pair has a cosine of {cosines[tuple(pairs[0])]:.2f}" if len(pairs) else ""
    first, second = notes["between"]
    return (
        f"The loss of each sample at {first} and {second} ({losses_of(notes)}): {before.mean():.3g} and "
        f"{after.mean():.3g} on average, {(change > 0).sum():,} samples rise and {(change < 0).sum():,} fall. The "
        f"{len(shown)} that change most make {100 * share:.0f} % of all changes{opposed}."
    )


def _learning_coefficients(file: h5py.File, notes: Mapping[str, Any]) -> str:
    texts = []
    for i, name in enumerate(file["state"].asstr()[()]):
        value, error, half, rhat, bulk, tail = (
            float(file[column][i])
            for column in ("lambda", "standard_error", "half_parameters", "rhat", "ess_bulk", "ess_tail")
        )
        wrong = ", ".join(notes["problems"][name])
        text = f"{value:.4g} ± {error:.2g} at {name}, of at most {half:g} at a regular minimum (R-hat {rhat:.3f}, "
        text += f"effective sample size {bulk:.0f}, in the tails {tail:.0f})"
        texts.append(text + (f", not to be used because of {wrong}" if wrong else ""))
    return f"Draws of the chains whose mean is the learning coefficient: {'; '.join(texts)}; {losses_of(notes)}."


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"
