"""`lsam trajectory RUN`: where chains and center went, on a plane of states."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lsam_hpc.tools import source
from lsam_hpc.tools.ranks import Ranks, about, add_ranks, digest, set_threads
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape import surface as landscape
from lsam_hpc.landscape.axes import Axes, ranges, through
from lsam_hpc.landscape.draw_tracks import Losses, draw_tracks
from lsam_hpc.landscape.li2018 import Surface
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.states import SYNTAX, state
from lsam_hpc.landscape.tables import places, write_arrays, write_csv
from lsam_hpc.landscape.tracks import SOURCES, Tracks, from_sketches, from_snapshots
from lsam_hpc.landscape.workqueue import evaluate
from lsam_hpc.trajectory import Run

PARTS = ("surface", "losses")  # folders of finished points


def main(argv: Sequence[str]) -> int:
    """Find the tracks and draw them; return the exit code."""
    ranks = Ranks()
    given, run, objective = ranks.agree(lambda: _begin(argv))
    folder = ranks.once(lambda: source.folder(given, run))
    name = given.name or "trajectory"
    out = ranks.once(lambda: places(folder, name, [f".{given.format}", ".h5", ".csv"], given.overwrite))
    found: Tracks = ranks.once(lambda: _tracks(given, run))
    background, losses = None, None
    parts = {part: folder / f"{name}-{part}.part" for part in PARTS}
    if objective is not None and found.axes is not None:
        options = {**about(given, objective), "run": str(run.path), "split": given.split,
                   "plane": digest(found.axes.origin, found.axes.directions)}  # fmt: skip
        if given.surface:
            background = _background(given, ranks, objective, found, parts["surface"], options)
        if given.losses:
            losses = _losses(given, ranks, run, objective, found, parts["losses"], options)
    if ranks.first:
        _write(out, found, losses, background)
        logged = {rank: (steps["total_iteration"], steps["loss"]) for rank in run.ranks for steps in [run.steps(rank)]}
        title = f"{run.path.resolve().name}: {len(found.ranks)} ranks, from {found.source}"
        draw_tracks(found, out[f".{given.format}"], logged, losses, background, title)
        for part in parts.values():
            shutil.rmtree(part, ignore_errors=True)
        _report(found, losses, background)
        for path in out.values():
            print(path)
    return 0


def _begin(argv: Sequence[str]) -> tuple[argparse.Namespace, Run, Objective | None]:
    parser: argparse.ArgumentParser = source.parser(
        "trajectory",
        "Draw the ranks' samples and the center over training, on the plane of the samples' principal components or "
        "through three states, with the loss along the way and the distance from the plane. Under mpirun the points "
        "of --surface and --losses are shared out; after a kill the same command goes on.",
    )
    parser.add_argument("--from", dest="source", choices=SOURCES, help="what the states are taken from (default: "
                        "snapshots where there are three or more, else sketches)")  # fmt: skip
    parser.add_argument("--through", metavar="STATE,STATE,STATE", help=f"the plane through three states: {SYNTAX}")
    parser.add_argument("--mark", metavar="STATE", action="append", default=[], help="a further state to mark, as a "
                        "checkpoint; can be repeated (default: RUN/checkpoints/*.pt)")  # fmt: skip
    parser.add_argument("--surface", type=int, metavar="N", help="evaluate the loss on N x N points of the plane, and "
                        "draw its contours")  # fmt: skip
    parser.add_argument("--losses", action="store_true", help="evaluate the loss at each snapshot, and at its place on "
                        "the plane")  # fmt: skip
    parser.add_argument("--name", help="of the files (default: trajectory)")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    source.add_objective(parser)
    add_ranks(parser)
    given = parser.parse_args(argv)
    if given.surface is not None and given.surface < 2:
        raise InputError(f"--surface: expected 2 points or more, found {given.surface}")
    if given.source == "sketches" and (given.surface or given.losses or given.through):
        raise InputError("--from sketches: expected none of --surface, --losses and --through beside it, found one: "
                         "they need whole states")  # fmt: skip
    set_threads(given)
    run = Run(given.run, partial=given.partial)
    if given.source is None:
        whole = given.surface or given.losses or given.through
        given.source = "snapshots" if whole or _count(run, "snapshot/sample") > 2 else "sketches"
    return given, run, source.objective(given, run) if given.surface or given.losses else None


def _count(run: Run, table: str) -> int:
    return sum(run.log(rank).rows(table) for rank in run.ranks if table in run.log(rank).tables)


def _tracks(given: argparse.Namespace, run: Run) -> Tracks:
    marks = {name: state(run, name) for name in given.mark}
    there = sorted((run.path / "checkpoints").glob("*.pt"))
    for path in there if not given.mark else []:
        if path.name.startswith("rank-"):  # what a rank goes on from: its samples are drawn already
            continue
        try:
            marks[f"checkpoint {path.stem}"] = state(run, str(path))
        except InputError as error:  # nobody asked for it
            print(f"{error}: it is not drawn", file=sys.stderr)
    if given.source == "sketches":
        return from_sketches(run, marks)
    axes = None
    if given.through:
        chosen = given.through.split(",")
        if len(chosen) != 3:
            raise InputError(f"--through: expected three states, {SYNTAX}, found {given.through}")
        axes = through([state(run, name) for name in chosen], chosen)
    return from_snapshots(run, axes, marks)


def _background(
    given: argparse.Namespace, ranks: Ranks, objective: Objective, found: Tracks, part: Path, options: dict[str, Any]
) -> Surface:
    axes = _plane(found)
    all_places = [track.sample for track in found.ranks.values()] + [track.center for track in found.ranks.values()]
    at = np.concatenate([*all_places, *(place[None] for place in found.marks.values())])
    x, y = ranges(at[np.isfinite(at[:, 0])], given.surface, 0.15)
    title = None if given.quiet else "lsam trajectory --surface"
    more = {**options, "x": list(x), "y": list(y)}
    return landscape.scan(objective, axes.origin, axes.directions, x, y, None, part, more, ranks.comm, title)


def _losses(
    given: argparse.Namespace,
    ranks: Ranks,
    run: Run,
    objective: Objective,
    found: Tracks,
    part: Path,
    options: dict[str, Any],
) -> dict[int, Losses]:
    axes = _plane(found)
    tasks = [(rank, i, row) for rank, rows in found.rows.items() for i, row in enumerate(rows)]

    def work(index: int) -> tuple[float, float]:
        rank, i, row = tasks[index]
        true = objective(objective.vector(run.snapshot(rank, row)))
        return true.loss, objective(objective.vector(axes.point(found.ranks[rank].sample[i]))).loss

    title = None if given.quiet else "lsam trajectory --losses"
    values = evaluate(work, len(tasks), 2, part, {**options, "states": len(tasks)}, ranks.comm, title)
    ends = np.cumsum([len(rows) for rows in found.rows.values()])[:-1]
    return {rank: Losses(*own.T) for rank, own in zip(found.rows, np.split(values, ends), strict=True)}


def _plane(found: Tracks) -> Axes:
    assert found.axes is not None  # whole states were asked for
    return found.axes


def _write(out: dict[str, Path], found: Tracks, losses: dict[int, Losses] | None, background: Surface | None) -> None:
    table: dict[str, list[NDArray[Any]]] = {}
    for rank, track in found.ranks.items():
        own = {
            "rank": np.full(len(track.iteration), rank), "iteration": track.iteration, "total_iteration": track.total,
            "x": track.sample[:, 0], "y": track.sample[:, 1], "off_plane": track.off, "center_x": track.center[:, 0],
            "center_y": track.center[:, 1], "center_off_plane": track.center_off,
        }  # fmt: skip
        if losses:
            own |= {"loss": losses[rank].true, "plane_loss": losses[rank].plane}
        for name, values in own.items():
            table.setdefault(name, []).append(values)
    joined: dict[str, Any] = {name: np.concatenate(values) for name, values in table.items()}
    write_csv(out[".csv"], joined)
    arrays = {**joined, "marks": list(found.marks), "marks_at": np.array([*found.marks.values()]).reshape(-1, 2),
              "marks_off_plane": np.array([*found.marks_off.values()], float)}  # fmt: skip
    if not found.marks:
        arrays.pop("marks")
    if found.axes is not None:
        arrays |= {"origin": found.axes.origin, "directions": found.axes.directions}
    if background is not None:
        arrays |= {"surface/x": background.x, "surface/y": background.y, "surface/loss": background.values["loss"]}
    explained = None if found.explained is None else list(found.explained)
    write_arrays(out[".h5"], arrays, {"source": found.source, "labels": found.labels, "explained": explained})


def _report(found: Tracks, losses: dict[int, Losses] | None, background: Surface | None) -> None:
    if found.explained is not None:
        print(f"plane: {100 * found.explained.sum():.2f} % of the samples' variance, "
              f"{100 * found.explained[0]:.2f} and {100 * found.explained[1]:.2f} %")  # fmt: skip
    off = np.concatenate([track.off for track in found.ranks.values()])
    print(f"off the plane: {np.median(off):.4g} (median), {off.max():.4g} (largest)")
    for name, distance in found.marks_off.items():
        print(f"{name}: {distance:.4g} off the plane")
    for what, values in (
        ("along the tracks", [v for own in (losses or {}).values() for v in (own.true, own.plane)]),
        ("on the plane", [] if background is None else [background.values["loss"]]),
    ):
        if lost := sum(int(np.count_nonzero(~np.isfinite(v))) for v in values):
            print(f"loss {what}: not finite at {lost} points, which are left empty")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
