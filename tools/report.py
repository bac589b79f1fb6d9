"""`lsam report RUN`: write one HTML file with a run's facts, checks, figures and tables."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsam_hpc.errors import InputError
from lsam_hpc.landscape.chains.diagnosis import CheckResult, diagnose
from lsam_hpc.landscape.chains.statistics import Chains, chains
from lsam_hpc.landscape.figures.draw_chains import draw_chains
from lsam_hpc.landscape.figures.draw_tracks import draw_tracks
from lsam_hpc.landscape.geometry.tracks import Tracks, from_sketches, from_snapshots
from lsam_hpc.landscape.report import captions, figurefiles, stored
from lsam_hpc.landscape.report.report import Report, Section, Table, cell, picture
from lsam_hpc.landscape.report.space import space
from lsam_hpc.tools import source
from lsam_hpc.tools.inspect_run import summary
from lsam_hpc.tools.live import serve
from lsam_hpc.tools.marks import checkpoint_marks
from lsam_hpc.tools.report_facts import answer, facts
from lsam_hpc.tools.report_surface import GRID, IMAGES, background, say
from lsam_hpc.trajectory import Run

MOST_ROWS = 32  # rows of a table that is not folded


def main(argv: Sequence[str]) -> int:
    """Write the report; return the exit code."""
    args = arguments(argv)
    if args.live:
        return serve(Path(args.run), args.port or 0, quiet=args.quiet)
    run = Run(args.run, partial=args.partial)
    out = (source.folder(args, run) if args.out else source.home(run.path)) / args.name
    say(args, "reading the run")
    info = summary(run)
    with tempfile.TemporaryDirectory() as name:
        verdicts, checks, drawn = _checks(args, run, Path(name))
        sections = [checks, *_where(args, run, Path(name), drawn)]
    first = Section("summary", "Summary", facts=facts(info, verdicts))
    say(args, "writing the page")
    others = figurefiles.pictures(source.figures_folder(run.path), out, drawn)
    more = [Section("figures", "Figures of other programs", pictures=others)] if others else []
    title = f"Run {run.path.resolve().name}"
    Report(title, [first, *sections, *more, _ranks(info), _options(info)]).write(out)
    for line in run.problems:
        print(line, file=sys.stderr)
    if not args.quiet:
        print(out)
    return 0


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options; check them, and that what the program needs is there."""
    parser = source.parser(
        "report",
        "Write one HTML file about a run: facts, checks, figures, tables, and the loss around its chains as a surface "
        "that can be turned. It works without a network. A surface that lsam trajectory or an earlier report stored in "
        "RUN/figures, for the same states and data, is not computed again.",
        tables=False,
    )
    parser.add_argument("--name", default="report.html", help="file name, in RUN or --out (default: report.html)")
    parser.add_argument(
        "--surface",
        type=int,
        metavar="N",
        help="evaluate the loss on N x N points of the chains' plane; 0: do not (default: a stored surface, else "
        f"{GRID}, if the run or options name model and data)",
    )
    parser.add_argument(
        "--live", action="store_true", help="serve a page on this machine that shows the run while its job runs"
    )
    parser.add_argument("--port", type=int, metavar="N", help="port of 127.0.0.1 for --live (default: a free one)")
    source.add_objective(parser, IMAGES)
    parser.set_defaults(images=None)  # with a stored surface: its number
    args = parser.parse_args(argv)
    if args.live:
        _check_live(parser, args)
        return args
    if args.port is not None:
        raise InputError("--port: expected --live with it, found none")
    source.parse(parser, args, "arviz", "jinja2", "plotly", figures="")
    if args.surface and args.surface < 2:
        raise InputError(f"--surface: expected 2 points or more, or 0, found {args.surface}")
    if Path(args.name).name != args.name:
        raise InputError(f"--name: expected a name without folders, found {args.name!r}")
    return args


def _check_live(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    others = [
        name
        for name, value in vars(args).items()
        if name not in ("run", "live", "port", "quiet") and value != parser.get_default(name)
    ]
    if others:
        raise InputError(
            f"--live: expected no other options than --port and --quiet, found --{others[0].replace('_', '-')}"
        )


def _checks(args: argparse.Namespace, run: Run, folder: Path) -> tuple[list[CheckResult] | None, Section, list[str]]:
    """Return the verdicts, their section, and the names of figures in RUN/figures that show the same."""
    name, title = "verdicts", "Are these chains samples?"
    say(args, "checking the chains")
    try:
        statistics = chains(run)
    except InputError as error:  # the rest of the page does not need the chains
        return None, Section(name, title, f"Not judged: {error}.", terms=captions.DEFINITIONS), []
    verdicts = diagnose(statistics)
    drawn = picture(
        draw_chains(statistics, folder / "chains.svg"),
        "Panels about the chains and exchanges; the numbers are in the tables of this page.",
        captions.of_chains(statistics),
    )
    text = (
        f"{answer(verdicts)}. The answer follows from agreement, draws and temperature, which are necessary but not "
        "sufficient: chains that agree may all have missed the same basin."
    )
    section = Section(
        name, title, text, verdicts=verdicts, pictures=[drawn], tables=[_mixing(statistics)], terms=captions.DEFINITIONS
    )
    files = source.figures_folder(run.path).glob("*.h5")
    return verdicts, section, [file.stem for file in files if stored.shows_chains(file, statistics)]


def _mixing(statistics: Chains) -> Table:
    rows = [
        (
            q.name,
            cell(q.mixing.rhat, ".3f"),
            cell(q.mixing.ess_bulk, ",.0f"),
            cell(q.mixing.ess_tail, ",.0f"),
            cell(q.tau, ",.0f"),
        )
        for q in statistics.quantities
    ]
    needed = "R-hat at most 1.01, and 100 per chain of bulk and tail ESS, are needed"
    head = ("quantity", "R-hat", "bulk ESS", "tail ESS", "autocorrelation time, steps")
    return Table(f"How well the {len(statistics.used)} chains mix; {needed}", head, rows)


def _where(args: argparse.Namespace, run: Run, folder: Path, drawn: list[str]) -> list[Section]:
    """Return the sections of the tracks and the surface; add the names of figures in RUN/figures that show the same."""
    title = "Where the chains went"
    say(args, "projecting the states")
    try:
        tracks = _tracks(run)
    except InputError as error:
        return [Section("where", title, f"Not drawn: {error}.")]
    found, text = background(args, run, tracks)
    surface, split = (found.surface, found.notes.get("split")) if found else (None, None)
    logged = {rank: (steps["total_iteration"], steps["loss"]) for rank in run.ranks for steps in [run.steps(rank)]}
    name = f"{run.path.resolve().name}: {len(tracks.ranks)} ranks, from {tracks.source}"
    losses = found.losses if found else None
    path = draw_tracks(tracks, folder / "tracks.svg", logged, losses, surface, title=name)
    shown = picture(path, captions.moves(tracks), captions.of_tracks(tracks, surface))
    sections = [Section("where", title, text, pictures=[shown], tables=[_ends(tracks)])]
    if found is not None:
        words = captions.losses_of(found.notes)
        sections.append(
            Section(
                "surface",
                "The loss around the chains",
                captions.of_space(tracks, found.surface, words, where=found.where),
                space=space(tracks, found.surface, f"{split} loss" if split else "loss"),
                names=[f"rank {rank}" for rank in tracks.ranks],
                label=captions.moves(tracks),
            )
        )
    files = source.figures_folder(run.path).glob("*.h5")
    drawn += [file.stem for file in files if stored.shows_tracks(file, tracks, surface, losses, split)]
    return sections


def _tracks(run: Run) -> Tracks:
    count = sum(
        run.log(rank).rows("snapshot/sample") for rank in run.ranks if "snapshot/sample" in run.log(rank).tables
    )
    marks = checkpoint_marks(run)  # as in the figure of `lsam trajectory`
    return from_snapshots(run, marks=marks) if count > 2 else from_sketches(run, marks)


def _ends(tracks: Tracks) -> Table:
    head = ("chain", "states", "first, axis 1", "first, axis 2", "last, axis 1", "last, axis 2", "last, off the plane")
    rows = [
        (f"rank {rank}", str(len(t.iteration)), *(cell(float(v)) for v in (*t.sample[0], *t.sample[-1], t.off[-1])))
        for rank, t in tracks.ranks.items()
    ]
    return Table("Where each chain began and ended", head, rows, folded=True)


def _ranks(info: dict[str, Any]) -> Section:
    head = (
        *("rank", "host", "steps", "steps/s", "last mini-batch loss", "train loss", "test error, %"),
        *("exchanges", "rejected", "mean staleness"),
    )
    rows = [tuple(cell(value) for value in _row(rank)) for rank in info["ranks"]]
    table = Table("What each rank did; train loss and test error are its last sample's", head, rows)
    return Section("ranks", "Ranks", tables=[table])


def _row(rank: dict[str, Any]) -> tuple[Any, ...]:
    result = rank["result"] or {}
    return (
        rank["rank"],
        rank["host"],
        f"{rank['steps']:,}",
        rank["steps_per_second"],
        rank["loss"],
        result.get("sample_train_loss"),
        result.get("sample_test_error"),
        f"{rank['exchanges']:,}",
        rank["refused"],
        rank["staleness_mean"],
    )


def _options(info: dict[str, Any]) -> Section:
    options = [(name, json.dumps(value)) for name, value in info["config"].items() if value is not None]
    attributes = [(name, str(value)) for name, value in info["attributes"].items()]
    return Section(
        "options",
        "Options and origin",
        tables=[
            Table("All options of the run", ("option", "value"), options, folded=True, wraps=True),
            Table("Where the run comes from", ("attribute", "value"), attributes, folded=True, wraps=True),
        ],
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
