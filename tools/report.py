"""`lsam report RUN`: write one HTML file with a run's verdicts, figures and tables, and advice."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.chains.diagnosis import are_samples, diagnose
from lsam_hpc.landscape.chains.statistics import chains
from lsam_hpc.landscape.figures.draw_chains import draw_chains
from lsam_hpc.landscape.figures.draw_tracks import draw_tracks
from lsam_hpc.landscape.formats.loss_landscape import Surface
from lsam_hpc.landscape.geometry import surface
from lsam_hpc.landscape.geometry.axes import ranges
from lsam_hpc.landscape.geometry.tracks import Tracks, from_sketches, from_snapshots
from lsam_hpc.landscape.objective import Objective
from lsam_hpc.landscape.packages import require
from lsam_hpc.landscape.report import report
from lsam_hpc.landscape.report.report import Picture, Report, Section, Table, cell, picture
from lsam_hpc.tools import source
from lsam_hpc.tools.inspect_run import ending, summary
from lsam_hpc.trajectory import Run

GRID = 15  # points along each axis of the surface


def main(argv: Sequence[str]) -> int:
    """Write the report; return the exit code."""
    parser = source.parser(
        "report",
        "Write one HTML file about a run: verdicts, figures, tables, and the loss around its chains as a surface that "
        "can be turned. It works without a network.",
    )
    parser.add_argument("--name", default="report.html", help="file name, in RUN or --out (default: report.html)")
    parser.add_argument(
        "--surface",
        type=int,
        metavar="N",
        help=f"evaluate the loss on N x N points of the chains' plane; 0: do not (default: {GRID}, if the run or "
        "options name model and data)",
    )
    source.add_objective(parser, 500)
    args = source.parse(parser, argv, "arviz", "jinja2", "plotly", figures="")
    if args.surface and args.surface < 2:
        raise InputError(f"--surface: expected 2 points or more, or 0, found {args.surface}")
    if args.surface != 0 and sys.stderr.isatty():
        require("tqdm")  # shows progress
    if Path(args.name).name != args.name:
        raise InputError(f"--name: expected a name without folders, found {args.name!r}")
    run = Run(args.run, partial=args.partial)
    out = (source.folder(args, run) if args.out else run.path if run.path.is_dir() else run.path.parent) / args.name
    info = summary(run)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sections = [_verdicts(run, folder), *_where(args, run, folder)]
    Report(_title(run), _subtitle(info), [*sections, *_figures(run), _ranks(info), _options(info)]).write(out)
    for line in run.problems:
        print(line, file=sys.stderr)
    print(out)
    return 0


def _title(run: Run) -> str:
    return f"Run {run.path.resolve().name}"


def _subtitle(info: dict[str, Any]) -> str:
    attributes, center = info["attributes"], info["center"]
    end = ending(info)
    if center["test_error"] is not None:
        end = f"test error of the center {center['test_error']:.2f} %"
    return (
        f"{attributes['ranks']} ranks, started {attributes['created']} by {attributes['launcher']}; "
        f"{info['parameters']:,} parameters; {end}."
    )


def _verdicts(run: Run, folder: Path) -> Section:
    try:
        statistics = chains(run)
    except InputError as error:  # the rest of the page does not need the chains
        return Section("verdicts", "Are these chains samples?", f"Not judged: {error}.")
    verdicts = diagnose(statistics)
    answer = "Yes." if are_samples(verdicts) else "No."
    named = statistics.quantities
    rows = [
        (
            q.name,
            cell(q.mixing.rhat, ".3f"),
            cell(q.mixing.ess_bulk, ".0f"),
            cell(q.mixing.ess_tail, ".0f"),
            f"{q.tau:.0f}",
        )
        for q in named
    ]
    table = Table(
        "How well the chains mix",
        ("quantity", "split R-hat", "bulk ESS", "tail ESS", "autocorrelation time, steps"),
        rows,
    )
    drawn = picture(
        draw_chains(statistics, folder / "chains.svg"),
        "Six panels; the numbers are in the tables of this page.",
        "Traces, autocorrelation, distance from the center, staleness, waits, and the ranks' speeds.",
    )
    return Section("verdicts", "Are these chains samples?", answer, verdicts, [drawn], [table])


def _where(args: argparse.Namespace, run: Run, folder: Path) -> list[Section]:
    title = "Where the chains went"
    try:
        tracks = _tracks(run)
    except InputError as error:
        return [Section("where", title, f"Not drawn: {error}.")]
    background = None
    text = ""
    if tracks.axes is None:
        text = "From sketches: coordinates are right to a few percent. "
        text += "A surface needs snapshots: train with --snapshot-every log."
    elif args.surface != 0:
        try:
            f = source.objective(args, run)
        except InputError as error:
            if _named(args):
                raise
            text = f"No surface of the loss: {error}."
            print(f"no surface of the loss: {error}", file=sys.stderr)
        else:
            background = _surface(args, f, tracks)
    logged = {rank: (steps["total_iteration"], steps["loss"]) for rank in run.ranks for steps in [run.steps(rank)]}
    path = draw_tracks(tracks, folder / "tracks.svg", logged, background=background)
    caption = "Samples and center on the plane of the samples' principal components, the logged loss, and distances "
    caption += "from the plane."
    sections = [
        Section("where", title, text, pictures=[picture(path, _description(tracks), caption)], tables=[_ends(tracks)])
    ]
    if background is not None:
        names = [f"rank {rank}" for rank in tracks.ranks]
        space = report.space(tracks, background, f"{args.split} loss")
        sections.append(
            Section(
                "surface",
                "The loss around them",
                "Turn it with the mouse, a finger, or the buttons.",
                space=space,
                names=names,
                label=_description(tracks),
            )
        )
    return sections


def _tracks(run: Run) -> Tracks:
    count = sum(
        run.log(rank).rows("snapshot/sample") for rank in run.ranks if "snapshot/sample" in run.log(rank).tables
    )
    return from_snapshots(run) if count > 2 else from_sketches(run)


def _named(args: argparse.Namespace) -> bool:
    """Return whether the user asked for the surface, or named its model or data: then it must be made."""
    options = ("surface", "model", "data", "make_model", "make_batches", "loss", "data_dir")
    return any(vars(args).get(name) is not None for name in options)


def _surface(args: argparse.Namespace, objective: Objective, tracks: Tracks) -> Surface:
    assert tracks.axes is not None
    points = np.concatenate([part for track in tracks.ranks.values() for part in (track.sample, track.center)])
    x, y = ranges(points[np.isfinite(points[:, 0])], args.surface or GRID, 0.15)
    title = "lsam report: surface" if sys.stderr.isatty() else None
    return surface.scan(objective, tracks.axes.origin, tracks.axes.directions, x, y, title=title)


def _description(tracks: Tracks) -> str:
    ends = [track.sample[-1] for track in tracks.ranks.values()]
    spread = float(np.linalg.norm(np.ptp(ends, axis=0)))
    first = next(iter(tracks.ranks.values()))
    moved = float(np.linalg.norm(first.sample[-1] - first.sample[0]))
    return (
        f"Paths of {len(tracks.ranks)} chains over training. Rank {next(iter(tracks.ranks))} ends {moved:.3g} from "
        f"where it began; at the end the chains lie within {spread:.3g} of each other on the plane."
    )


def _ends(tracks: Tracks) -> Table:
    head = ("chain", "states", "first, axis 1", "first, axis 2", "last, axis 1", "last, axis 2", "last, off the plane")
    rows = [
        (f"rank {rank}", str(len(t.iteration)), *(cell(float(v)) for v in (*t.sample[0], *t.sample[-1], t.off[-1])))
        for rank, t in tracks.ranks.items()
    ]
    return Table("Where each chain began and ended", head, rows, folded=True)


def _figures(run: Run) -> list[Section]:
    """Return the figures that other programs drew for this run."""
    folder = run.path / "figures"
    files = sorted(f for f in folder.iterdir() if f.suffix in report.KINDS) if folder.is_dir() else []
    pictures: list[Picture] = []
    for file in files:
        numbers = file.with_suffix(".csv")
        beside = f" Its numbers: figures/{numbers.name}." if numbers.exists() else ""
        pictures.append(picture(file, f"Figure {file.stem}.{beside}", f"{file.stem}.{beside}"))
    return [Section("figures", "Figures of other programs", pictures=pictures)] if pictures else []


def _ranks(info: dict[str, Any]) -> Section:
    head = ("rank", "host", "steps", "steps/s", "last loss", "exchanges", "refused", "mean staleness", "test error, %")
    rows = [tuple(cell(value) for value in _row(rank)) for rank in info["ranks"]]
    return Section("ranks", "Ranks", tables=[Table("What each rank did", head, rows)])


def _row(rank: dict[str, Any]) -> tuple[Any, ...]:
    result = rank["result"] or {}
    return (
        rank["rank"],
        rank["host"],
        rank["steps"],
        rank["steps_per_second"],
        rank["loss"],
        rank["exchanges"],
        rank["refused"],
        rank["staleness_mean"],
        result.get("sample_test_error"),
    )


def _options(info: dict[str, Any]) -> Section:
    options = [(name, json.dumps(value)) for name, value in info["config"].items() if value is not None]
    attributes = [(name, str(value)) for name, value in info["attributes"].items()]
    return Section(
        "options",
        "Options and origin",
        tables=[
            Table("Options", ("option", "value"), options, folded=True, wraps=True),
            Table("Where the run comes from", ("attribute", "value"), attributes, folded=True, wraps=True),
        ],
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
