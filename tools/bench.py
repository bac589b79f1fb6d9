"""`lsam bench NAME`: the benchmarks, each ours : peer : limit as medians of one run."""

from __future__ import annotations

import importlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lsam_hpc.arguments import Parser
from lsam_hpc.text import columns

BENCHMARKS = {
    "optimizer": "lsam_hpc.tools.bench_optimizer",
    "exchange": "lsam_hpc.tools.bench_exchange",
    "straggler": "lsam_hpc.tools.bench_straggler",
    "progress": "lsam_hpc.tools.bench_progress",
    "log": "lsam_hpc.tools.bench_log",
    "horovod": "lsam_hpc.tools.bench_horovod",
}


def main(argv: Sequence[str]) -> int:
    """Run a benchmark, print its table and write it as JSON if told to; return the exit code."""
    parser = Parser(prog="lsam bench", description="Measure: ours, a peer and the physical limit in one run.")
    parser.add_argument("name", choices=BENCHMARKS, help="what is measured: %(choices)s")
    parser.add_argument("--repeats", type=int, default=30, help="of which medians are taken (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the numbers and the machine's description there")
    given = parser.parse_args(argv)
    if given.repeats < 1:
        parser.error(f"--repeats: expected 1 or more, found {given.repeats}")
    rows: list[dict[str, str | float]] = importlib.import_module(BENCHMARKS[given.name]).measure(given.repeats)
    if not rows:  # another rank has them
        return 0
    about = machine()
    print(columns([tuple(rows[0]), *(tuple(_cell(value) for value in row.values()) for row in rows)]))
    print(", ".join(f"{key}: {value}" for key, value in about.items()), f"repeats: {given.repeats}", sep="; ")
    if given.json:
        report = {"benchmark": given.name, "repeats": given.repeats, "machine": about, "rows": rows}
        Path(given.json).write_text(json.dumps(report, indent=2) + "\n")
    return 0


def medians(repeats: int, timed: Mapping[str, tuple[Callable[[], object], Callable[[], object]]]) -> dict[str, float]:
    """Return the median seconds of several things, measured in turn so that a slow moment meets all of them.

    Args:
        repeats: number of measurements of each, after a tenth as many that do not count.
        timed: name -> (what is done before, untimed; what is timed).
    """
    seconds: dict[str, list[float]] = {name: [] for name in timed}
    for repeat in range(-max(1, repeats // 10), repeats):
        for name, (before, work) in timed.items():
            before()
            began = time.perf_counter()
            work()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def machine() -> dict[str, str]:
    """Return what a reader needs to know of the machine."""
    import torch

    models = [
        line.split(":")[1].strip() for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")
    ]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "cpu": models[0] if models else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "threads": str(torch.get_num_threads()),
        "gpu": device,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
