"""`lsam report RUN`: one HTML file with what a run did, where its chains went, and what to change."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lsam_hpc.tools import source
from lsam_hpc.tools.inspect_run import summary

from lsam_hpc.errors import InputError
from lsam_hpc.landscape import report, surface
from lsam_hpc.landscape.axes import ranges
from lsam_hpc.landscape.chains import chains
from lsam_hpc.landscape.draw_chains import draw_chains
from lsam_hpc.landscape.draw_tracks import draw_tracks
from lsam_hpc.landscape.li2018 import Surface
from lsam_hpc.landscape.report import Picture, Report, Section, Table, cell, picture
from lsam_hpc.landscape.tracks import Tracks, from_sketches, from_snapshots
from lsam_hpc.landscape.verdicts import are_samples, judge
from lsam_hpc.trajectory import Run

GRID = 15  # points along each axis of the surface


def main(argv: Sequence[str]) -> int:
    """Write the report; return the exit code."""
    parser: argparse.ArgumentParser = source.parser(
        "report", "Write one HTML file that shows a run: verdicts, figures, tables, and the loss around its chains to "
        "turn around. It works without a network."
    )  # fmt: skip
    parser.add_argument("--name", default="report.html", help="of the file, in RUN or --out (default: report.html)")
    parser.add_argument("--surface", type=int, default=GRID, metavar="N", help="evaluate the loss on N x N points of "
                        f"the chains' plane, 0: not (default: {GRID})")  # fmt: skip
    source.add_objective(parser, 500)
    given = parser.parse_args(argv)
    if given.surface and given.surface < 2:
        raise InputError(f"--surface: expected 2 points or more, or 0, found {given.surface}")
    if Path(given.name).name != given.name:
        raise InputError(f"--name: expected a name without folders, found {given.name!r}")
    run = Run(given.run, partial=given.partial)
    out = (source.folder(given, run) if given.out else run.path if run.path.is_dir() else run.path.parent) / given.name
    about = summary(run)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sections = [_verdicts(run, folder), *_where(given, run, folder)]
    Report(_title(run), _subtitle(about), [*sections, *_figures(run), _ranks(about), _options(about)]).write(out)
    for line in run.problems:
        print(line, file=sys.stderr)
    print(out)
    return 0


def _title(run: Run) -> str:
    return f"Run {run.path.resolve().name}"


def _subtitle(about: dict[str, Any]) -> str:
    found, center = about["attributes"], about["center"]
    end = "it has not ended, or was stopped"
    if center["test_error"] is not None:
        end = f"test error of the center {center['test_error']:.2f} %"
    return (f"{found['ranks']} ranks, started {found['created']} by {found['launcher']}; "
            f"{about['parameters']:,} parameters; {end}.")  # fmt: skip


def _verdicts(run: Run, folder: Path) -> Section:
    try:
        found = chains(run)
    except InputError as error:  # the rest of the page can be had
        return Section("verdicts", "Are these chains samples?", f"Not judged: {error}.")
    verdicts = judge(found)
    answer = "Yes." if are_samples(verdicts) else "No."
    rows = [(q.name, cell(q.mixing.rhat, ".3f"), cell(q.mixing.ess, ".0f"), f"{q.tau:.0f}") for q in found.quantities]
    table = Table("How well the chains mix", ("quantity", "split R-hat", "effective sample size",
                                              "autocorrelation time, steps"), rows)  # fmt: skip
    drawn = picture(
        draw_chains(found, folder / "chains.svg"),
        "Six panels; the numbers are in the tables of this page.",
        "Traces, autocorrelation, distance from the center, staleness, waits, and the ranks' speeds.",
    )
    return Section("verdicts", "Are these chains samples?", answer, verdicts, [drawn], [table])


def _where(given: argparse.Namespace, run: Run, folder: Path) -> list[Section]:
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
    elif given.surface:
        background = _surface(given, run, tracks)
    logged = {rank: (steps["total_iteration"], steps["loss"]) for rank in run.ranks for steps in [run.steps(rank)]}
    path = draw_tracks(tracks, folder / "tracks.svg", logged, None, background, "")
    caption = "Samples and center on the plane of the samples' principal components, the logged loss, and distances "
    caption += "from the plane."
    sections = [Section("where", title, text, pictures=[picture(path, _spoken(tracks), caption)],
                        tables=[_ends(tracks)])]  # fmt: skip
    if background is not None:
        names = [f"rank {rank}" for rank in tracks.ranks]
        space = report.space(tracks, background, f"{given.split} loss")
        sections.append(Section("surface", "The loss around them", "Turn it with the mouse, a finger, or the buttons.",
                                space=space, names=names, label=_spoken(tracks)))  # fmt: skip
    return sections


def _tracks(run: Run) -> Tracks:
    there = sum(run.log(rank).rows("snapshot/sample") for rank in run.ranks
                if "snapshot/sample" in run.log(rank).tables)  # fmt: skip
    return from_snapshots(run) if there > 2 else from_sketches(run)


def _surface(given: argparse.Namespace, run: Run, tracks: Tracks) -> Surface:
    assert tracks.axes is not None
    places = np.concatenate([part for track in tracks.ranks.values() for part in (track.sample, track.center)])
    x, y = ranges(places[np.isfinite(places[:, 0])], given.surface, 0.15)
    title = "lsam report: surface" if sys.stderr.isatty() else None
    return surface.scan(source.objective(given, run), tracks.axes.origin, tracks.axes.directions, x, y, title=title)


def _spoken(tracks: Tracks) -> str:
    ends = [track.sample[-1] for track in tracks.ranks.values()]
    spread = float(np.linalg.norm(np.ptp(ends, axis=0)))
    first = next(iter(tracks.ranks.values()))
    way = float(np.linalg.norm(first.sample[-1] - first.sample[0]))
    return (f"Paths of {len(tracks.ranks)} chains over training. Rank {next(iter(tracks.ranks))} ends {way:.3g} from "
            f"where it began; at the end the chains lie within {spread:.3g} of each other on the plane.")  # fmt: skip


def _ends(tracks: Tracks) -> Table:
    head = ("chain", "states", "first, axis 1", "first, axis 2", "last, axis 1", "last, axis 2", "last, off the plane")
    rows = [
        (f"rank {rank}", str(len(t.iteration)), *(cell(float(v)) for v in (*t.sample[0], *t.sample[-1], t.off[-1])))
        for rank, t in tracks.ranks.items()
    ]
    return Table("Where each chain began and ended", head, rows, folded=True)


def _figures(run: Run) -> list[Section]:
    """Return what other programs drew for this run."""
    folder = run.path / "figures"
    files = sorted(f for f in folder.iterdir() if f.suffix in report.KINDS) if folder.is_dir() else []
    pictures: list[Picture] = []
    for file in files:
        numbers = file.with_suffix(".csv")
        beside = f" Its numbers: figures/{numbers.name}." if numbers.exists() else ""
        pictures.append(picture(file, f"Figure {file.stem}.{beside}", f"{file.stem}.{beside}"))
    return [Section("figures", "Figures of other programs", pictures=pictures)] if pictures else []


def _ranks(about: dict[str, Any]) -> Section:
    head = ("rank", "host", "steps", "steps/s", "last loss", "exchanges", "refused", "mean staleness", "test error, %")
    rows = [tuple(cell(value) for value in _row(rank)) for rank in about["ranks"]]
    return Section("ranks", "Ranks", tables=[Table("What each rank did", head, rows)])


def _row(rank: dict[str, Any]) -> tuple[Any, ...]:
    result = rank["result"] or {}
    return (rank["rank"], rank["host"], rank["steps"], rank["steps_per_second"], rank["loss"], rank["exchanges"],
            rank["refused"], rank["staleness_mean"], result.get("sample_test_error"))  # fmt: skip


def _options(about: dict[str, Any]) -> Section:
    options = [(name, json.dumps(value)) for name, value in about["config"].items() if value is not None]
    attributes = [(name, str(value)) for name, value in about["attributes"].items()]
    return Section("options", "Options and origin", tables=[
        Table("Options", ("option", "value"), options, folded=True, wraps=True),
        Table("Where the run comes from", ("attribute", "value"), attributes, folded=True, wraps=True),
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
