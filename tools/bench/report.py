"""`lsam bench report FILES`: writes docs/explanation/performance.md from the reports of the benchmarks."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from lsam_hpc.errors import InputError
from lsam_hpc.tools.bench import main as bench
from lsam_hpc.tools.bench.base import Report
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.progress import add_quiet

WIDTH = 124
MACHINE = ("cpu", "cores", "memory", "gpu", "torch", "python")  # what all reports of a page should have in common
HEAD = "# Performance"
ABOUT = """\
Results of the benchmarks on the machine below. `lsam bench report docs/benchmarks` writes this page from their numbers;
`bash docs/benchmarks/run.sh` measures again. `lsam bench NAME` runs one benchmark on your machine; ratios within a
table are comparable between machines, milliseconds are not.
"""


def main(argv: Sequence[str]) -> int:
    """Write the page and its figures; return the exit code."""
    parser = Parser(
        prog="lsam bench report",
        description="Write docs/explanation/performance.md from the files of lsam bench --json.",
    )
    parser.add_argument("paths", nargs="+", metavar="FILE|DIR", help="JSON files, notes (.md), or folders of them")
    parser.add_argument("--out", default="docs/explanation/performance.md", help="the page (default: %(default)s)")
    add_quiet(parser)
    args = parser.parse_args(argv)
    files = _files([Path(path) for path in args.paths])
    reports, out = reports_of(files), Path(args.out)
    if not out.parent.is_dir():
        raise InputError(f"--out: expected a file in an existing folder, found {out}")
    for name in bench.BENCHMARKS:
        if (runs := reports.get(name)) and (draw := getattr(bench.load(name), "draw", None)):
            (out.parent / "figures").mkdir(exist_ok=True)
            draw(runs, out.parent / "figures" / f"{name}.png")
    out.write_text(render(files))
    if not args.quiet:
        print(f"{out}: {sum(map(len, reports.values()))} runs of {len(reports)} benchmarks")
    return 0


def render(files: Sequence[Path]) -> str:
    """Return the page.

    Args:
        files: JSON files; Markdown files are appended unchanged.
    """
    reports = reports_of(files)
    text = f"{HEAD}\n\n{_filled(ABOUT)}\n\n" + _machines([report for runs in reports.values() for report in runs])
    for name, runs in reports.items():
        module = bench.load(name)
        text += f"\n## {module.TITLE}\n\n{_filled(module.page(runs))}\n"
    notes = [path.read_text().strip() for path in files if path.suffix == ".md"]
    return text + "".join(f"\n{note}\n" for note in notes)


def reports_of(files: Sequence[Path]) -> dict[str, list[Report]]:
    """Return the reports by benchmark in the page's order, from few ranks to many.

    Raises:
        InputError: a file is not a report.
    """
    runs = sorted((Report.read(path) for path in files if path.suffix == ".json"), key=_order)
    for report in runs:
        if report.benchmark not in bench.BENCHMARKS:
            raise InputError(f"report: expected one of {', '.join(bench.BENCHMARKS)}, found {report.benchmark!r}")
    return {name: group for name in bench.BENCHMARKS if (group := [r for r in runs if r.benchmark == name])}


def _order(report: Report) -> tuple[bool, int]:
    return report.machine["mpi"].split(" ")[0] != "Open", int(report.machine["ranks"])


def _files(paths: Sequence[Path]) -> list[Path]:
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: expected a JSON file or a folder with JSON files, found nothing")
        inside = sorted(p for p in path.iterdir() if p.suffix in (".json", ".md")) if path.is_dir() else [path]
        files += inside
    if not any(path.suffix == ".json" for path in files):
        raise InputError(f"{paths[0]}: expected JSON files of lsam bench, found none")
    return files


def _machines(reports: Sequence[Report]) -> str:
    """Return a line per machine, with the names of its benchmarks if there are several machines."""
    kinds: dict[str, list[str]] = {}
    for report in reports:
        about = ", ".join(f"{name}: {report.machine[name]}" for name in MACHINE)
        kinds.setdefault(about, []).append(report.benchmark)
    if len(kinds) == 1:
        return f"{next(iter(kinds))}.\n"
    return "".join(f"* {', '.join(dict.fromkeys(names))}: {about}.\n" for about, names in kinds.items())


def _filled(text: str) -> str:
    """Return Markdown with its paragraphs and lists wrapped to WIDTH."""
    blocks = []
    for block in text.strip().split("\n\n"):
        if block.startswith(("|", "!")):
            blocks.append(block)
        elif block.startswith("* "):
            lines = block.split("\n")
            blocks.append("\n".join(_fill(line, "  ") for line in lines))
        else:
            blocks.append(_fill(" ".join(block.split())))
    return "\n\n".join(blocks)


def _fill(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
