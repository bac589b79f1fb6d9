"""Paths of several runs: the lines inside each run and between the runs' centers, on one scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.landscape.compare.comparison import BRIGHT, Case, Comparison, cell, named, of_rows
from lsam_hpc.landscape.figures.figures import CENTER, COLOURS, figure, save
from lsam_hpc.landscape.figures.stored import Stored, matrix_of, profiles_of
from lsam_hpc.landscape.geometry.barriers import Matrix, Profile
from lsam_hpc.util.text import columns


def compare_matrices(cases: Sequence[Case], numbers: Sequence[Stored], how: Mapping[str, Any]) -> Comparison:
    """Return the comparison of barriers inside runs, and between the runs' centers.

    Args:
        cases: those that are not `alone` have no lines inside.
        numbers: of each case, and after them those between the centers, for each split; without arrays if there are
            none, as of different models.
        how: the title.
    """
    every = [matrix_of(stored) if stored.arrays else None for stored in numbers]
    inside, centers = every[: len(cases)], every[len(cases) :]
    rows = [_numbers(case, lines) for case, lines in zip(cases, inside, strict=True)]
    text, table = of_rows(rows)
    known = [matrix for matrix in centers if matrix is not None]
    for split, matrix in zip(dict.fromkeys(case.split for case in cases), centers, strict=True):
        if matrix is None:
            continue
        head = f"barrier between centers{f', {split} data' if len(centers) > 1 else ''}"
        lines = [[head, *matrix.names]]
        for name, heights in zip(matrix.names, matrix.barriers, strict=True):
            lines.append([name, *map(cell, heights)])
        text += f"\n\n{columns(lines)}"
        for i, j in zip(*np.triu_indices(len(matrix.names), 1), strict=True):
            pair = {"run": matrix.names[i], "to_run": matrix.names[j], "split": split}
            row = pair | {"highest_barrier": matrix.barriers[i, j], "center_loss": matrix.loss[i, i, 0]}
            for name, values in table.items():
                values.append(row.get(name, np.nan))
    return Comparison(text, table, partial(_draw, list(zip(cases, inside, strict=True)), known, how["title"]))


def _numbers(case: Case, lines: Matrix | None) -> dict[str, Any]:
    row: dict[str, Any] = {
        "run": case.run,
        "to_run": "",
        "split": case.split,
        "ranks": np.nan,
        "highest_barrier": np.nan,
        "between": "",
        "mean_barrier": np.nan,
        "center_loss": np.nan,
        "mean_loss_of_ranks": np.nan,
    }
    if lines is None:
        return row
    pairs = lines.barriers[np.triu_indices(len(lines.names), 1)]
    ends = dict(zip(lines.names, np.einsum("iit->it", lines.loss)[:, 0], strict=True))
    of_ranks = [loss for name, loss in ends.items() if name != "center"]
    return row | {
        "ranks": len(of_ranks),
        "highest_barrier": float(np.nanmax(pairs)),
        "between": " and ".join(lines.names[i] for i in lines.highest or ()),
        "mean_barrier": float(np.nanmean(pairs)),
        "center_loss": float(ends.get("center", np.nan)),
        "mean_loss_of_ranks": float(np.mean(of_ranks)),
    }


def _draw(inside: Sequence[tuple[Case, Matrix | None]], centers: Sequence[Matrix], title: str, path: Path) -> Path:
    names = named([case for case, _ in inside])
    panels = [(name, lines) for name, (_, lines) in zip(names, inside, strict=True) if lines is not None]
    count = len(panels) + len(centers)
    cols = min(4, count)
    rows = -(-count // cols)
    with figure(0.7 + 2.9 * cols, 0.9 + 2.6 * rows, rows, cols) as (drawing, grid):
        axes = list(np.ravel(grid))
        values = [lines.loss for _, lines in panels] + [matrix.loss for matrix in centers]
        known = np.concatenate([loss[np.isfinite(loss)] for loss in values])
        margin = 0.05 * (float(np.ptp(known)) or 1.0)
        for axis, (name, lines) in zip(axes, panels, strict=False):
            size = len(lines.names)
            for i, j in zip(*np.triu_indices(size, 1), strict=True):
                to_center = "center" in (lines.names[i], lines.names[j])
                colour = COLOURS[1] if to_center else COLOURS[0]
                axis.plot(lines.t, lines.loss[i, j], color=colour, linewidth=0.9, linestyle="--" if to_center else "-")
            axis.set_title(f"inside {name}")
        splits = list(dict.fromkeys(case.split for case, _ in inside))
        of_split = iter([f", {split}" for split in splits] if len(splits) > 1 else [""])
        for axis, matrix in zip(axes[len(panels) :], centers, strict=False):
            for number, (i, j) in enumerate(zip(*np.triu_indices(len(matrix.names), 1), strict=True)):
                label = f"{matrix.names[i]} to {matrix.names[j]}"
                axis.plot(matrix.t, matrix.loss[i, j], color=(CENTER, *BRIGHT[2:])[number % 6], label=label)
            axis.set_title("between the centers" + next(of_split))
            axis.legend(fontsize=7)
        for k, axis in enumerate(axes):
            axis.set_visible(k < count)
            axis.set_ylim(float(known.min()) - margin, float(known.max()) + margin)
            axis.set_xlabel("position t on the line")
            axis.tick_params(labelleft=k % cols == 0)
            if k % cols == 0:
                axis.set_ylabel("loss")
        if panels:
            first = axes[0]
            first.plot([], [], color=COLOURS[1], linestyle="--", label="with the center")
            first.plot([], [], color=COLOURS[0], label="between ranks")
            drawing.legend(*first.get_legend_handles_labels(), loc="outside lower center", ncols=2)
        drawing.suptitle(f"Straight lines, {title}")
        return save(drawing, path)


def compare_profiles(cases: Sequence[Case], numbers: Sequence[Stored], how: Mapping[str, Any]) -> Comparison:
    """Return the comparison of the losses between two states of each run; `how` has the title and the `ends`."""
    profiles = list(map(profiles_of, numbers))
    rows = []
    for case, of_case in zip(cases, profiles, strict=True):
        for label, profile in of_case.items():
            row = {"run": case.run, "split": case.split, "path": label.split()[0].lower(), "barrier": profile.barrier}
            loss = profile.loss
            rows.append(row | {"first_loss": loss[0], "second_loss": loss[-1], "largest_loss": np.nanmax(loss)})
    draw = partial(_draw_profiles, list(zip(cases, profiles, strict=True)), how["ends"], how["title"])
    return Comparison(*of_rows(rows), draw)


def _draw_profiles(
    profiles: Sequence[tuple[Case, Mapping[str, Profile]]], ends: Sequence[str], title: str, path: Path
) -> Path:
    paths = list(profiles[0][1])
    with figure(1.0 + 4.6 * len(paths), 4.0, cols=len(paths)) as (drawing, axes):
        axes = np.atleast_1d(axes).reshape(-1)
        for axis, label in zip(axes, paths, strict=True):
            for (case, of_case), name in zip(profiles, named([case for case, _ in profiles]), strict=True):
                profile = of_case[label]
                axis.plot(profile.t, profile.loss, marker=".", markersize=3, label=name, **case.style)
            axis.set_title(label)
            axis.set_xlabel(f"position t from {ends[0]} to {ends[1]}")
        low = min(axis.get_ylim()[0] for axis in axes)
        high = max(axis.get_ylim()[1] for axis in axes)
        for axis in axes:
            axis.set_ylim(low, high)
        axes[0].set_ylabel("loss")
        drawing.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        drawing.suptitle(title)
        return save(drawing, path)
