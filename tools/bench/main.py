"""`lsam bench NAME`: benchmarks of lsam-hpc against a peer and the hardware's limit, as medians of one run."""

from __future__ import annotations

import importlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from lsam_hpc.errors import InputError
from lsam_hpc.tools.bench import base as bench_base
from lsam_hpc.tools.bench.base import Benchmark, Report
from lsam_hpc.util import preflight
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.document import document
from lsam_hpc.util.progress import add_quiet
from lsam_hpc.util.text import columns

# name, with its flag -> (module, a `base.Benchmark`; least number of ranks, 0: it does not start MPI), in the order of
# docs/explanation/performance.md.
BENCHMARKS = {
    "startup": ("lsam_hpc.tools.bench.startup", 0),
    "optimizer": ("lsam_hpc.tools.bench.optimizer", 0),
    "train": ("lsam_hpc.tools.bench.train", 1),
    "exchange": ("lsam_hpc.tools.bench.exchange", 2),
    "straggler": ("lsam_hpc.tools.bench.straggler", 2),
    "horovod": ("lsam_hpc.tools.bench.horovod", 2),
    "growth": ("lsam_hpc.tools.bench.growth", 1),
    "growth --shard": ("lsam_hpc.tools.bench.growth_shard", 1),
    "progress": ("lsam_hpc.tools.bench.progress", 1),
    "log": ("lsam_hpc.tools.bench.log", 0),
}
# Modules with options of their own and main(argv) -> exit code.
OTHERS = {
    "simulate": "lsam_hpc.tools.bench.simulate",
    "compare": "lsam_hpc.tools.bench.compare",
    "report": "lsam_hpc.tools.bench.report",
}


def load(name: str) -> Benchmark:
    """Return a benchmark's module."""
    module: Benchmark = importlib.import_module(BENCHMARKS[name][0])
    return module


def main(argv: Sequence[str]) -> int:
    """Run a benchmark, print its table and write its --json file; return the exit code."""
    if argv and argv[0] in OTHERS:
        import mpi4py

        mpi4py.rc.initialize = False  # they read files or start MPI jobs; this process is no rank
        return int(importlib.import_module(OTHERS[argv[0]]).main(argv[1:]))
    parser = Parser(
        prog="lsam bench",
        description="Benchmark lsam-hpc against a peer and the hardware's limit in one run.",
        epilog="`lsam bench report FILES` makes docs/explanation/performance.md from the --json files.",
    )
    first = [name for name in BENCHMARKS if " " not in name]
    names = ", ".join([*first, *OTHERS])
    parser.add_argument("name", choices=first, metavar="NAME", help=f"the benchmark: {names}")
    parser.add_argument("--shard", action="store_true", help="growth: of models that fully_shard (FSDP2) has sharded")
    parser.add_argument("--repeats", type=int, default=30, help="measurements in a median (default: %(default)s)")
    report = "write the numbers and the machine's description to FILE (without FILE: print them, and nothing else)"
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help=report)
    parser.add_argument("--quick", action="store_true", help="only test that it runs: the numbers mean nothing")
    add_quiet(parser)
    args = parser.parse_args(argv)
    if args.repeats < 1:
        parser.error(f"--repeats: expected 1 or more, found {args.repeats}")
    name = args.name + " --shard" * args.shard
    if name not in BENCHMARKS:
        parser.error(f"--shard: expected the benchmark growth, found {args.name}")
    bench_base.check_out(args.json)
    needed = BENCHMARKS[name][1]
    if needed:
        preflight.start()
    count = bench_base.ranks()[0]
    if count < needed:
        raise InputError(
            f"bench {name}: expected {needed} ranks or more, as in mpirun -n {needed} lsam bench {name}, found {count}",
            everywhere=True,
        )
    benchmark, about = load(name), bench_base.machine()
    bench_base.show_progress(f"lsam bench {name}" if bench_base.is_first() and not args.quiet else None)
    rows = benchmark.measure(args.repeats, quick=args.quick)
    if not rows:  # rank 0 has them
        return 0
    words = [] if count == 1 else ["mpirun", "-n", str(count)]
    words += ["lsam", "bench", *name.split(), "--repeats", str(args.repeats), *["--quick"] * args.quick]
    made = Report(name, shlex.join(words), args.repeats, args.quick, about, rows)
    if args.json == "-":
        print(document(asdict(made)))
        return 0
    if not args.quiet:
        print(columns([tuple(rows[0]), *(tuple(map(bench_base.number, row.values())) for row in rows)]))
        print(", ".join(f"{key}: {value}" for key, value in about.items()), f"repeats: {args.repeats}", sep="; ")
    if args.json:
        made.write(Path(args.json))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
