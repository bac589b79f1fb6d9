"""`lsam bench report FILES`: docs/performance.md from what the benchmarks wrote, so that it says what they found."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from lsam_hpc.tools import bench
from lsam_hpc.tools.bench_base import Report

from lsam_hpc.arguments import Parser
from lsam_hpc.errors import InputError

WIDTH = 124
MACHINE = ("cpu", "cores", "memory", "gpu", "torch", "python")  # what all benchmarks of a page should have in common
HEAD = "# Performance"
ABOUT = """\
What the benchmarks found, on the machine below. This page is made from their numbers: `lsam bench report
docs/benchmarks` writes it again, `bash docs/benchmarks/run.sh` measures again. `lsam bench NAME` measures one thing
where you are; ratios within one table travel, milliseconds do not.
"""


def main(argv: Sequence[str]) -> int:
    """Write the page and its figures; return the exit code."""
    parser = Parser(
        prog="lsam bench report", description="Write docs/performance.md from what lsam bench --json wrote."
    )
    parser.add_argument("paths", nargs="+", metavar="FILE|DIR", help="JSON files, notes (.md), or folders with such")
    parser.add_argument("--out", default="docs/performance.md", help="the page (default: %(default)s)")
    given = parser.parse_args(argv)
    files = _files([Path(path) for path in given.paths])
    reports, out = reports_of(files), Path(given.out)
    if not out.parent.is_dir():
        raise InputError(f"--out: expected a file in a folder that is there, found {out}")
    for name in bench.BENCHMARKS:
        if (mine := reports.get(name)) and (draw := getattr(bench.load(name), "draw", None)):
            (out.parent / "figures").mkdir(exist_ok=True)
            draw(mine, out.parent / "figures" / f"{name}.png")
    out.write_text(render(files))
    print(f"{out}: {sum(map(len, reports.values()))} runs of {len(reports)} benchmarks")
    return 0


def render(files: Sequence[Path]) -> str:
    """Return the page.

    Args:
        files: JSON files; notes in Markdown come last, as they are.
    """
    reports = reports_of(files)
    text = f"{HEAD}\n\n{_filled(ABOUT)}\n\n" + _machines([report for found in reports.values() for report in found])
    for name, found in reports.items():
        module = bench.load(name)
        text += f"\n## {module.TITLE}\n\n{_filled(module.page(found))}\n"
    notes = [path.read_text().strip() for path in files if path.suffix == ".md"]
    return text + "".join(f"\n{note}\n" for note in notes)


def reports_of(files: Sequence[Path]) -> dict[str, list[Report]]:
    """Return what the JSON files hold: by benchmark in the page's order, from few ranks to many.

    Raises:
        InputError: a file holds something else.
    """
    found = sorted((Report.read(path) for path in files if path.suffix == ".json"), key=_order)
    for report in found:
        if report.benchmark not in bench.BENCHMARKS:
            raise InputError(f"report: expected one of {', '.join(bench.BENCHMARKS)}, found {report.benchmark!r}")
    return {name: mine for name in bench.BENCHMARKS if (mine := [r for r in found if r.benchmark == name])}


def _order(report: Report) -> tuple[str, int]:
    return report.machine["mpi"].split(" ")[0] != "Open", int(report.machine["ranks"])


def _files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: expected a JSON file or a folder with some, found nothing")
        inside = sorted(p for p in path.iterdir() if p.suffix in (".json", ".md")) if path.is_dir() else [path]
        files += inside
    if not any(path.suffix == ".json" for path in files):
        raise InputError(f"{paths[0]}: expected JSON files of lsam bench, found none")
    return files


def _machines(reports: Sequence[Report]) -> str:
    """Return a line per machine, with what was measured there if there are several."""
    kinds: dict[str, list[str]] = {}
    for report in reports:
        about = ", ".join(f"{name}: {report.machine[name]}" for name in MACHINE)
        kinds.setdefault(about, []).append(report.benchmark)
    if len(kinds) == 1:
        return f"{next(iter(kinds))}.\n"
    return "".join(f"* {', '.join(dict.fromkeys(names))}: {about}.\n" for about, names in kinds.items())


def _filled(text: str) -> str:
    """Return Markdown with the lines of its paragraphs and lists as long as they may be."""
    found = []
    for block in text.strip().split("\n\n"):
        if block.startswith(("|", "!")):
            found.append(block)
        elif block.startswith("* "):
            lines = block.split("\n")
            found.append("\n".join(_fill(line, "  ") for line in lines))
        else:
            found.append(_fill(" ".join(block.split())))
    return "\n\n".join(found)


def _fill(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
