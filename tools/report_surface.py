"""The surface of `lsam report`: a stored one of the same states and data, else one that is computed and stored."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.figures.draw_tracks import Losses
from lsam_hpc.landscape.formats.loss_landscape import Surface
from lsam_hpc.landscape.geometry import surface
from lsam_hpc.landscape.geometry.axes import Axes
from lsam_hpc.landscape.geometry.tracks import Tracks, grid_around
from lsam_hpc.landscape.packages import require
from lsam_hpc.landscape.report import stored
from lsam_hpc.landscape.report.stored import Stored
from lsam_hpc.tools import source
from lsam_hpc.trajectory import Run

if TYPE_CHECKING:
    from lsam_hpc.landscape.objective import Objective

GRID = 15  # points along each axis of the surface
IMAGES = 500  # samples of its loss
_NAMED = ("surface", "model", "data", "make_model", "make_batches", "loss", "data_dir")


@dataclass(frozen=True)
class Background:
    """The loss on the plane of the tracks.

    Args:
        surface: the loss.
        notes: what it was computed from, see `ranks.objective_options`.
        where: file that it was read from; empty: it was computed now.
        losses: losses along the tracks, by rank; None: not known.
    """

    surface: Surface
    notes: Mapping[str, Any]
    where: str = ""
    losses: dict[int, Losses] | None = None


def say(args: argparse.Namespace, text: str) -> None:
    """Print what the program does now, unless it is to be quiet."""
    if not args.quiet:
        print(f"lsam report: {text}", file=sys.stderr)


def background(args: argparse.Namespace, run: Run, tracks: Tracks) -> tuple[Background | None, str]:
    """Return the loss around the tracks, and a text for the page: why there is none, or what was not checked.

    Raises:
        InputError: the user asked for the surface, or named its model or data, and it cannot be made.
    """
    if tracks.axes is None:
        text = "From sketches: coordinates are right to a few percent. "
        return None, text + "A surface needs snapshots: train with --snapshot-every log."
    if args.surface == 0:
        return None, ""
    known = _known(args, run, tracks)
    objectives: dict[int, Objective] = {}
    try:
        require("torch")
        for each in known:
            count = each.notes["samples"] if args.images is None else args.images
            f = objectives[count] = objectives.get(count) or _objective(args, run, count)
            if each.same(_notes(args, f)) and each.same_loss(f(f.vector(tracks.axes.point(each.middle))).loss):
                say(args, f"{each.path}: its surface is of the same states and data, and is not computed again")
                return _reused(each, run), ""
        count = IMAGES if args.images is None else args.images
        f = objectives.get(count) or _objective(args, run, count)
    except InputError as error:
        if any(vars(args).get(name) is not None for name in _NAMED):
            raise
        if known:
            say(args, f"{error}: taking the surface of {known[0].path}")
            return _reused(known[0], run), f"The surface was stored, and is not checked: {error}."
        print(f"no surface of the loss: {error}", file=sys.stderr)
        return None, f"No surface of the loss: {error}."
    made = _computed(args, f, tracks, tracks.axes)
    path = source.folder(args, run) / f"{Path(args.name).stem}-surface.h5"
    stored.write(path, tracks, made.surface, made.notes)
    return made, ""


def _known(args: argparse.Namespace, run: Run, tracks: Tracks) -> list[Stored]:
    """Return the stored surfaces of these states that may be of the data that the options name, the best one first."""
    folders = [source.figures_folder(run.path), *([Path(args.out)] if args.out else [])]
    known = []
    for path in dict.fromkeys(path.resolve() for folder in folders for path in sorted(folder.glob("*.h5"))):
        try:
            found = stored.find(path, tracks, args.surface)
        except InputError as error:
            print(f"{error}: not used", file=sys.stderr)
            continue
        # Of other data (None) it may be what the user has in mind: `Stored.same` decides if the data can be loaded.
        splits = (None,) if args.make_batches else (args.split, None)
        if found and found.notes.get("split") in splits and args.images in (None, 0, found.notes.get("samples")):
            known.append(found)
    return sorted(known, key=lambda each: (not each.losses, -len(each.surface.x)))  # the richest and finest first


def _objective(args: argparse.Namespace, run: Run, images: int) -> Objective:
    chosen = copy(args)
    chosen.images = images
    return source.objective(chosen, run)


def _notes(args: argparse.Namespace, objective: Objective) -> dict[str, Any]:
    import torch

    from lsam_hpc.tools.ranks import objective_options

    chosen = copy(args)
    chosen.threads = torch.get_num_threads()
    return objective_options(chosen, objective)


def _reused(known: Stored, run: Run) -> Background:
    home = source.home(run.path).resolve()
    where = str(known.path.relative_to(home) if known.path.is_relative_to(home) else known.path.name)
    return Background(known.surface, known.notes, where, known.losses)


def _computed(args: argparse.Namespace, objective: Objective, tracks: Tracks, axes: Axes) -> Background:
    x, y = grid_around(tracks, args.surface or GRID)
    title = None if args.quiet else "lsam report --surface"
    made = surface.scan(objective, axes.origin, axes.directions, x, y, title=title)
    return Background(made, _notes(args, objective))
