"""The lines and planes of `lsam surface`, from its options."""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.geometry.axes import Axes, directed, line, random_axes, ranges, through
from lsam_hpc.landscape.geometry.projection import plane
from lsam_hpc.landscape.geometry.tracks import principal
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.states import state
from lsam_hpc.trajectory import Run

POINTS = 25


def state_axes(args: argparse.Namespace, run: Run, objective: Objective) -> tuple[Axes, NDArray[np.float64] | None]:
    """Return the line or plane, and the coordinates that the grid must cover; None: [-1, 1]."""
    origin = state(run, args.at)
    if args.to:
        axes = towards(args, run, origin)
        return axes, np.stack(list(axes.marks.values()))
    axes, cover = _around(args, run, objective, origin)
    return replace(axes, marks={args.at: np.zeros(len(axes.directions))}), cover


def _around(
    args: argparse.Namespace, run: Run, objective: Objective, origin: NDArray[np.float32]
) -> tuple[Axes, NDArray[np.float64] | None]:
    layout = [(name, shape) for name, shape, _ in run.layout]
    count = 1 if args.line else 2
    kind = args.directions or "random"
    how = args.normalise or ("filter" if kind == "random" else "none")
    if kind == "random":
        return random_axes(origin, layout, count, args.seed, how=how, small=args.small), None
    if kind == "pca":
        fitted = plane(run)
        if how != "none":
            along = fitted.directions[:count]
            return directed(origin, along, layout, how=how, small=args.small, name="principal component"), None
        labels = principal(fitted.explained)[:count]
        axes = Axes(origin, fitted.directions[:count], labels, explained=fitted.explained)
        at, _ = axes.coordinates(fitted.origin[None])
        return axes, np.concatenate([track[:, :count] for track in fitted.coordinates.values()]) + at
    from lsam_hpc.landscape.curvature.spectrum import eigenpairs

    eigenvalues, vectors = eigenpairs(objective, objective.vector(origin), count, seed=args.seed)
    axes = directed(origin, vectors, layout, how=how, small=args.small, name="eigenvector")
    labels = tuple(f"{label}, eigenvalue {w:.3g}" for label, w in zip(axes.labels, eigenvalues, strict=True))
    return replace(axes, labels=labels), None


def towards(args: argparse.Namespace, run: Run, origin: NDArray[np.float32]) -> Axes:
    """Return the line or plane of `--to`."""
    if args.directions or args.normalise:
        raise InputError("--to excludes --directions and --normalise")
    names = args.to.split(",")
    if len(names) > 2 or (args.line and len(names) > 1):
        raise InputError(f"--to: expected one state for a line or two for a plane, found {args.to}")
    others = [state(run, name) for name in names]
    if len(others) == 1:
        return line(origin, others[0], (args.at, names[0]))
    return through([origin, *others], [args.at, *names])


def grid(
    args: argparse.Namespace, axes: Axes, cover: NDArray[np.float64] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
    """Return the coordinates along both axes; None for the second one of a line."""
    flat = len(axes.directions) == 1
    if flat and args.y:
        raise InputError("--y: a line has no second axis")
    default = [np.linspace(-1, 1, POINTS)] * 2 if cover is None else ranges(cover, POINTS)
    x = _coordinates("--x", args.x) if args.x else default[0]
    if flat:
        return x, None
    return x, _coordinates("--y", args.y) if args.y else (x if args.x else default[1])


def _coordinates(option: str, text: str) -> NDArray[np.float64]:
    try:
        start, stop, count = text.split(":")
        coordinates = np.linspace(float(start), float(stop), int(count))
    except ValueError as error:
        raise InputError(f"{option}: expected FROM:TO:POINTS as in {option}=-1:1:51, found {text!r}") from error
    if len(coordinates) < 2 or not np.isfinite(coordinates).all() or coordinates[0] >= coordinates[-1]:
        raise InputError(f"{option}: expected two points or more from a smaller to a larger number, found {text!r}")
    return coordinates
