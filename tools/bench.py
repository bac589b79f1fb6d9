"""`lsam bench NAME`: the benchmarks, each ours : peer : limit as medians of one run."""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from lsam_hpc.tools import bench_base
from lsam_hpc.tools.bench_base import Benchmark, Report

from lsam_hpc import preflight
from lsam_hpc.arguments import Parser
from lsam_hpc.errors import InputError
from lsam_hpc.text import columns

# name -> (module as `bench_base.Benchmark` says, ranks that it needs at least, 0: it does not start MPI), in the order
# in which docs/performance.md tells of them.
BENCHMARKS = {
    "startup": ("lsam_hpc.tools.bench_startup", 0),
    "optimizer": ("lsam_hpc.tools.bench_optimizer", 0),
    "train": ("lsam_hpc.tools.bench_train", 1),
    "exchange": ("lsam_hpc.tools.bench_exchange", 2),
    "straggler": ("lsam_hpc.tools.bench_straggler", 2),
    "horovod": ("lsam_hpc.tools.bench_horovod", 2),
    "growth": ("lsam_hpc.tools.bench_growth", 1),
    "progress": ("lsam_hpc.tools.bench_progress", 1),
    "log": ("lsam_hpc.tools.bench_log", 0),
}
# Modules with options of their own and main(argv) -> exit code.
OTHERS = {
    "simulate": "lsam_hpc.tools.bench_simulate",
    "compare": "lsam_hpc.tools.bench_compare",
    "report": "lsam_hpc.tools.bench_report",
}


def load(name: str) -> Benchmark:
    """Return a benchmark's module."""
    found: Benchmark = importlib.import_module(BENCHMARKS[name][0])
    return found


def main(argv: Sequence[str]) -> int:
    """Run a benchmark, print its table and write it as JSON if told to; return the exit code."""
    if argv and argv[0] in OTHERS:
        import mpi4py

        mpi4py.rc.initialize = False  # they read files or start jobs: MPI is theirs, and this process has no part in it
        return int(importlib.import_module(OTHERS[argv[0]]).main(argv[1:]))
    parser = Parser(
        prog="lsam bench",
        description="Measure: ours, a peer and the physical limit in one run.",
        epilog="`lsam bench report FILES` makes docs/performance.md from what --json wrote.",
    )
    names = ", ".join([*BENCHMARKS, *OTHERS])
    parser.add_argument("name", choices=BENCHMARKS, metavar="NAME", help=f"what is measured: {names}")
    parser.add_argument("--repeats", type=int, default=30, help="of which medians are taken (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers and the machine's description there")
    parser.add_argument("--quick", action="store_true", help="try the way through only: the numbers mean nothing")
    given = parser.parse_args(argv)
    if given.repeats < 1:
        parser.error(f"--repeats: expected 1 or more, found {given.repeats}")
    bench_base.check_out(given.json)
    needed = BENCHMARKS[given.name][1]
    if needed:
        preflight.start()
    count = bench_base.ranks()[0]
    if count < needed:
        raise InputError(
            f"bench {given.name}: expected {needed} ranks or more, as in mpirun -n {needed} lsam bench {given.name}, "
            f"found {count}",
            everywhere=True,
        )
    benchmark, about = load(given.name), bench_base.machine()
    rows = benchmark.measure(given.repeats, given.quick)
    if not rows:  # another rank has them
        return 0
    words = [] if count == 1 else ["mpirun", "-n", str(count)]
    words += ["lsam", "bench", given.name, "--repeats", str(given.repeats), *["--quick"] * given.quick]
    print(columns([tuple(rows[0]), *(tuple(map(bench_base.number, row.values())) for row in rows)]))
    print(", ".join(f"{key}: {value}" for key, value in about.items()), f"repeats: {given.repeats}", sep="; ")
    if given.json:
        Report(given.name, shlex.join(words), given.repeats, given.quick, about, rows).write(Path(given.json))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
