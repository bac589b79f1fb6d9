"""Shared by all benchmarks: reports, medians timed in turn, the machine's description, and text for the page."""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from lsam_hpc.errors import InputError
from lsam_hpc.util import progress

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
Row = dict[str, str | float]
Timed = dict[str, tuple[Callable[[], object], Callable[[], object]]]


@dataclass(frozen=True)
class Report:
    """The results of one run of a benchmark.

    Args:
        benchmark: name of the benchmark.
        command: the command that ran it.
        repeats: number of measurements in a median.
        quick: whether sizes were so small that the numbers mean nothing.
        machine: what `machine` returns.
        rows: name -> value, the same names in each row.
    """

    benchmark: str
    command: str
    repeats: int
    quick: bool
    machine: dict[str, str]
    rows: list[Row]

    def write(self, path: Path) -> None:
        """Write the report as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @staticmethod
    def read(path: Path) -> Report:
        """Return the report that `write` wrote.

        Raises:
            InputError: the file cannot be read, or is not a report.
        """
        try:
            return Report(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path}: expected a file written by lsam bench NAME --json, found: {error}") from error


def check_out(path: str | None) -> None:
    """Raise InputError if --json names a file that cannot be written after the measurement."""
    if path is not None and path != "-" and (Path(path).is_dir() or not Path(path).parent.is_dir()):
        raise InputError(f"--json: expected a file in a directory that exists, found {path}")


class Benchmark(Protocol):
    """A module with a benchmark and its section of docs/explanation/performance.md."""

    TITLE: str  # of its section of docs/explanation/performance.md

    def measure(self, repeats: int, *, quick: bool) -> list[Row]:
        """Return the rows; none on ranks above 0.

        Args:
            repeats: number of measurements in a median.
            quick: use sizes so small that only the code is tested, not the speed.
        """

    def page(self, reports: Sequence[Report]) -> str:
        """Return the section of docs/explanation/performance.md for the reports, in Markdown without the title."""


def device_of(rank: int = 0) -> torch.device:
    """Return where a benchmark computes: a GPU that torch can use, shared if there are more ranks, else the CPU."""
    import torch

    from lsam_hpc.optim.accelerators import kind_of, module_of

    kind = kind_of("auto")
    module = module_of(torch.device(kind))
    return torch.device(kind) if module is None else torch.device(kind, rank % module.device_count())


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all that was started; without effect for the CPU."""
    from lsam_hpc.optim.accelerators import module_of

    if (module := module_of(device)) is not None:
        module.synchronize(device)


_title: str | None = None  # of the progress that `counted` shows


def show_progress(title: str | None) -> None:
    """Set the title of the progress that `counted` shows. None: show nothing, as before the first call."""
    global _title
    _title = title


def counted(items: Sequence[T]) -> Iterator[T]:
    """Yield the items and show the progress, unless one is shown: of loops in each other, only the outer one is."""
    title = _title
    show_progress(None)
    try:
        yield from progress.counted(items, title)
    finally:
        show_progress(title)


def medians(
    repeats: int,
    timed: Mapping[str, tuple[Callable[[], object], Callable[[], object]]],
    finish: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """Return the median seconds of several actions, timed in turn so that a slow moment affects all of them.

    Args:
        repeats: number of measurements of each, after a tenth as many for warm-up.
        timed: name -> (untimed preparation, timed action).
        finish: ends a preparation and a timed action, for example by waiting for a GPU. Default: does nothing.
    """
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for repeat in counted(range(-max(1, repeats // 10), repeats)):
        for name, (before, work) in timed.items():
            before()
            finish()
            began = time.perf_counter()
            work()
            finish()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def ranks() -> tuple[int, str]:
    """Return the number of ranks and the MPI library; (1, "none") if MPI is not initialized."""
    if "mpi4py.MPI" not in sys.modules or not sys.modules["mpi4py.MPI"].Is_initialized():
        return 1, "none"
    from mpi4py import MPI

    vendor, numbers = MPI.get_vendor()
    return MPI.COMM_WORLD.size, f"{vendor} {'.'.join(map(str, numbers))}"


def is_first() -> bool:
    """Return whether this process is rank 0, or no rank."""
    if ranks()[1] == "none":
        return True
    from mpi4py import MPI

    return MPI.COMM_WORLD.rank == 0


def launcher(ranks: int) -> list[str]:
    """Return the command that starts a job of `ranks` ranks on this machine; they may outnumber its cores.

    Raises:
        InputError: there is no mpirun.
    """
    beside = Path(sys.executable).with_name("mpirun")
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
    if mpirun is None:
        raise InputError("bench: expected mpirun on the PATH, found none")
    version = subprocess.run([mpirun, "--version"], capture_output=True, text=True, check=False).stdout
    flags = ["--bind-to", "none", "--oversubscribe"] if "Open MPI" in version else []
    return [mpirun, *flags, "-n", str(ranks)]


def job_environment() -> dict[str, str]:
    """Return the environment of a job of `launcher`, with one thread per rank."""
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}
    return {**os.environ, **root, "OMP_NUM_THREADS": "1", "OMPI_MCA_osc": "^ucx"}


def machine() -> dict[str, str]:
    """Return a description of the machine and its present load; to be called before measuring."""
    import torch

    from lsam_hpc.optim.accelerators import kind_of

    models = [
        line.split(":")[1].strip() for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")
    ]
    count, library = ranks()
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "gpu": getattr(torch, kind).get_device_name() if (kind := kind_of("auto")) != "cpu" else "none",
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "mpi": library,
        "ranks": str(count),
        "load": f"{os.getloadavg()[0]:.2f}",
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def number(value: str | float) -> str:
    """Return a cell's text: three significant digits, without an exponent if possible."""
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def markdown(rows: Sequence[Row], names: Sequence[str] | None = None) -> str:
    """Return rows as a table; columns that are empty everywhere are left out."""
    names = [n for n in names or rows[0] if any(row[n] != "" for row in rows)]
    lines = [names, ["---"] * len(names), *([number(row[n]) for n in names] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def caption(report: Report) -> str:
    """Return the line above a table: the command, date, load and ranks."""
    about = report.machine
    text = f"`{report.command}`, {about['date']}, load {about['load']} before it"
    text += f"; {about['ranks']} ranks of {about['mpi']}" if int(about["ranks"]) > 1 else ""
    return text + ("; **quick: the numbers mean nothing**" if report.quick else "") + ":\n"


def aim(name: str, result: float, limit: float, *, at_most: bool = True) -> str:
    """Return a list item: a result, its limit, and whether it was met."""
    met = result <= limit if at_most else result >= limit
    word = "at most" if at_most else "at least"
    return f"* {name}: {number(result)}; the aim was {word} {number(limit)}: {'met' if met else '**missed**'}.\n"


def row(report: Report, first: str) -> Row:
    """Return the row whose first cell is `first`."""
    return next(r for r in report.rows if next(iter(r.values())) == first)


def value(report: Report, first: str, name: str) -> float:
    """Return column `name` of the row whose first cell is `first`, as a number."""
    return float(row(report, first)[name])


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
