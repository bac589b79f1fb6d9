"""`lsam trajectory RUN`: draw the paths of chains and center on a plane of states."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.compare.kinds import Kind
from lsam_hpc.landscape.figures.draw_tracks import Losses, draw_tracks
from lsam_hpc.landscape.formats.loss_landscape import Surface
from lsam_hpc.landscape.geometry import surface as landscape
from lsam_hpc.landscape.geometry.axes import Axes, through
from lsam_hpc.landscape.geometry.tracks import SOURCES, Tracks, from_sketches, from_snapshots, grid_around
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.report.stored import OBJECTIVE
from lsam_hpc.landscape.report.tables import places, write_arrays, write_csv
from lsam_hpc.landscape.states import SYNTAX, state
from lsam_hpc.landscape.workqueue import evaluate
from lsam_hpc.tools import source
from lsam_hpc.tools.as_json import with_json
from lsam_hpc.tools.case_facts import Prepared
from lsam_hpc.tools.marks import checkpoint_marks
from lsam_hpc.tools.ranks import Ranks, add_ranks, digest, objective_options, set_threads
from lsam_hpc.tools.several import Runs, Verb, each_run
from lsam_hpc.trajectory import Run
from lsam_hpc.util.arguments import Parser

PARTS = ("surface", "losses")  # kinds of points; each has a folder of finished ones


@with_json
def main(argv: Sequence[str]) -> int:
    """Find the tracks and draw them, for one run or to compare several; return the exit code."""
    return each_run(argv, Verb(_parser(), _one, _prepare, _name, lambda _: (".h5",), _compare))


def _one(options_of_run: argparse.Namespace) -> int:
    ranks = Ranks()
    args, run, objective = ranks.raise_on_all(lambda: _begin(options_of_run))
    folder = ranks.on_first(lambda: source.folder(args, run))
    name = _name(args)
    out = ranks.on_first(lambda: places(folder, name, [f".{args.format}", ".h5", ".csv"], overwrite=args.overwrite))
    tracks: Tracks = ranks.on_first(lambda: _tracks(args, run))
    background, losses, of = None, None, None
    parts = {part: folder / f"{name}-{part}.part" for part in PARTS}
    if objective is not None and tracks.axes is not None:
        options = {
            **objective_options(args, objective),
            "run": str(run.path),
            "plane": digest(tracks.axes.origin, tracks.axes.directions),
        }
        of = objective_options(args, objective)
        if args.surface:
            background = _background(args, ranks, objective, tracks, part=parts["surface"], options=options)
        if args.losses:
            losses = _losses(args, ranks, run, objective, tracks, part=parts["losses"], options=options)
    if ranks.is_first:
        logged = {rank: (steps["total_iteration"], steps["loss"]) for rank in run.ranks for steps in [run.steps(rank)]}
        words = [f"{len(tracks.ranks)} ranks", f"from {tracks.source}"]
        title = ", ".join([run.path.resolve().name, *words])
        if background is not None or losses:
            title = source.heading(args, run, objective, *words)  # type: ignore[arg-type]
        _write(out, tracks, losses, background, of=of, logged=logged, title=title)
        draw_tracks(tracks, out[f".{args.format}"], logged, losses, background, title=title)
        for part, computed in (("surface", background is not None), ("losses", losses is not None)):
            if computed:  # else it may be of another job, killed or running
                shutil.rmtree(parts[part], ignore_errors=True)
        _report(tracks, losses, background)
        for path in out.values():
            print(path)
    return 0


def _parser() -> Parser:
    parser = source.parser(
        "trajectory",
        "Draw the ranks' samples and the center over training, on the plane of the samples' principal components or "
        "through three states, with the loss along the paths and the distance from the plane. Under mpirun the ranks "
        "share the points of --surface and --losses; after a kill the same command resumes.",
        several=True,
    )
    parser.add_argument("--from", dest="renamed", help=argparse.SUPPRESS)  # elsewhere a share of the run
    parser.add_argument(
        "--source",
        choices=SOURCES,
        help="source of the states (default: snapshots if there are three or more, else sketches)",
    )
    parser.add_argument("--through", metavar="STATE,STATE,STATE", help=f"the plane through three states: {SYNTAX}")
    parser.add_argument(
        "--mark",
        metavar="STATE",
        action="append",
        default=[],
        help="a further state to mark, such as a checkpoint; repeatable (default: RUN/checkpoints/*.pt)",
    )
    parser.add_argument(
        "--surface", type=int, metavar="N", help="evaluate the loss on N x N points of the plane, and draw its contours"
    )
    parser.add_argument(
        "--losses", action="store_true", help="evaluate the loss at each snapshot, and at its projection onto the plane"
    )
    parser.add_argument("--name", help="base name of the files (default: trajectory)")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    source.add_objective(parser)
    add_ranks(parser)
    return parser


def _begin(args: argparse.Namespace) -> tuple[argparse.Namespace, Run, Objective | None]:
    source.parse(_parser(), args)
    if args.renamed is not None:
        raise InputError(f"--from: expected --source {args.renamed}, found --from {args.renamed}")
    if args.surface is not None and args.surface < 2:
        raise InputError(f"--surface: expected 2 points or more, found {args.surface}")
    if args.source == "sketches" and (args.surface or args.losses or args.through):
        raise InputError("--source sketches excludes --surface, --losses and --through: they need whole states")
    set_threads(args)
    run = Run(args.run, partial=args.partial)
    if args.source is None:
        whole = args.surface or args.losses or args.through
        args.source = "snapshots" if whole or _count(run, "snapshot/sample") > 2 else "sketches"
    return args, run, source.objective(args, run) if args.surface or args.losses else None


def _name(args: argparse.Namespace) -> str:
    return args.name or "trajectory"


def _prepare(args: argparse.Namespace) -> Prepared:
    args, run, objective = _begin(args)
    tracks = _tracks(args, run)
    states = [] if objective is None or tracks.axes is None else [tracks.axes.origin]
    return Prepared(run, objective, states)


def _compare(runs: Runs) -> Kind:
    return Kind("tracks", {"about": runs.about})


def _count(run: Run, table: str) -> int:
    return sum(run.log(rank).rows(table) for rank in run.ranks if table in run.log(rank).tables)


def _tracks(args: argparse.Namespace, run: Run) -> Tracks:
    marks = {name: state(run, name) for name in args.mark} if args.mark else checkpoint_marks(run)
    if args.source == "sketches":
        return from_sketches(run, marks)
    axes = None
    if args.through:
        chosen = args.through.split(",")
        if len(chosen) != 3:
            raise InputError(f"--through: expected three states, {SYNTAX}, found {args.through}")
        axes = through([state(run, name) for name in chosen], chosen)
    return from_snapshots(run, axes, marks)


def _background(
    args: argparse.Namespace, ranks: Ranks, objective: Objective, tracks: Tracks, *, part: Path, options: dict[str, Any]
) -> Surface:
    axes = _plane(tracks)
    x, y = grid_around(tracks, args.surface)
    title = None if args.quiet else "lsam trajectory --surface"
    shared: dict[str, Any] = {"folder": part, "options": {**options, "x": list(x), "y": list(y)}, "comm": ranks.comm}
    return landscape.scan(objective, axes.origin, axes.directions, x, y, title=title, **shared)


def _losses(
    args: argparse.Namespace,
    ranks: Ranks,
    run: Run,
    objective: Objective,
    tracks: Tracks,
    *,
    part: Path,
    options: dict[str, Any],
) -> dict[int, Losses]:
    axes = _plane(tracks)
    tasks = [(rank, i, row) for rank, rows in tracks.rows.items() for i, row in enumerate(rows)]

    def work(index: int) -> tuple[float, float]:
        rank, i, row = tasks[index]
        true = objective(objective.vector(run.snapshot(rank, row)))
        return true.loss, objective(objective.vector(axes.point(tracks.ranks[rank].sample[i]))).loss

    title = None if args.quiet else "lsam trajectory --losses"
    options = {**options, "states": len(tasks)}
    values = evaluate(work, len(tasks), 2, folder=part, options=options, comm=ranks.comm, title=title)
    ends = np.cumsum([len(rows) for rows in tracks.rows.values()])[:-1]
    return {rank: Losses(*pairs.T) for rank, pairs in zip(tracks.rows, np.split(values, ends), strict=True)}


def _plane(tracks: Tracks) -> Axes:
    assert tracks.axes is not None  # set when whole states are used
    return tracks.axes


def _write(
    out: dict[str, Path],
    tracks: Tracks,
    losses: dict[int, Losses] | None,
    background: Surface | None,
    *,
    of: dict[str, Any] | None,
    logged: dict[int, tuple[NDArray[np.int64], NDArray[Any]]],
    title: str,
) -> None:
    table: dict[str, list[NDArray[Any]]] = {}
    for rank, track in tracks.ranks.items():
        columns = {
            "rank": np.full(len(track.iteration), rank),
            "iteration": track.iteration,
            "total_iteration": track.total,
            "x": track.sample[:, 0],
            "y": track.sample[:, 1],
            "off_plane": track.off,
            "center_x": track.center[:, 0],
            "center_y": track.center[:, 1],
            "center_off_plane": track.center_off,
            "center_version": track.version,
        }
        if losses:
            columns |= {"loss": losses[rank].true, "plane_loss": losses[rank].plane}
        for name, values in columns.items():
            table.setdefault(name, []).append(values)
    joined: dict[str, Any] = {name: np.concatenate(values) for name, values in table.items()}
    write_csv(out[".csv"], joined)
    arrays = {
        **joined,
        "marks": list(tracks.marks),
        "marks_at": np.array([*tracks.marks.values()]).reshape(-1, 2),
        "marks_off_plane": np.array([*tracks.marks_off.values()], float),
    }
    if not tracks.marks:
        arrays.pop("marks")
    if tracks.axes is not None:
        arrays |= {"origin": tracks.axes.origin, "directions": tracks.axes.directions}
    if background is not None:
        arrays |= {"surface/x": background.x, "surface/y": background.y, "surface/loss": background.values["loss"]}
    arrays |= {
        "logged/rank": np.repeat(list(logged), [len(steps) for steps, _ in logged.values()]),
        "logged/total_iteration": np.concatenate([steps for steps, _ in logged.values()]),
        "logged/loss": np.concatenate([values for _, values in logged.values()]),
    }
    explained = None if tracks.explained is None else list(tracks.explained)
    figure = {"kind": "trajectory", "title": title, "one_center": tracks.one_center}
    notes = {"source": tracks.source, "labels": tracks.labels, "explained": explained, OBJECTIVE: of, "figure": figure}
    write_arrays(out[".h5"], arrays, notes)


def _report(tracks: Tracks, losses: dict[int, Losses] | None, background: Surface | None) -> None:
    if tracks.explained is not None:
        print(
            f"plane: {100 * tracks.explained.sum():.2f} % of the samples' variance, "
            f"{100 * tracks.explained[0]:.2f} and {100 * tracks.explained[1]:.2f} %"
        )
    off = np.concatenate([track.off for track in tracks.ranks.values()])
    print(f"off the plane: {np.median(off):.4g} (median), {off.max():.4g} (largest)")
    for name, distance in tracks.marks_off.items():
        print(f"{name}: {distance:.4g} off the plane")
    for where, values in (
        ("along the tracks", [v for pair in (losses or {}).values() for v in (pair.true, pair.plane)]),
        ("on the plane", [] if background is None else [background.values["loss"]]),
    ):
        if count := sum(int(np.count_nonzero(~np.isfinite(v))) for v in values):
            print(f"loss {where}: not finite at {count} points, which are left empty")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
