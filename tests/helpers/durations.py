"""Prints the duration of each folder of tests as Markdown: `python -m tests.helpers.durations LOG...`.

LOG: the output of pytest with --durations=0 -vv, as of `PYTEST_ADDOPTS="--durations=0 -vv" bash tests/run.sh`.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path

_LINE = re.compile(r"([\d.]+)s (?:call|setup|teardown) +(?:tests/)?((?:([^/:]+)/)?[^:]+::\S.*)")


def main(*logs: str) -> None:
    """Print the seconds of each folder of tests and MPI, and the slowest tests."""
    seconds: defaultdict[str, float] = defaultdict(float)
    tests: defaultdict[str, float] = defaultdict(float)
    for log in logs:
        for line in Path(log).read_text(errors="replace").splitlines():
            if match := _LINE.match(line):
                took, name, folder = float(match[1]), match[2], match[3] or "."
                seconds[folder] += took
                tests[name] += took
    print("| folder | seconds | slowest test | its seconds |\n|---|---|---|---|")
    for folder, total in sorted(seconds.items(), key=lambda item: -item[1]):
        inside = {name: took for name, took in tests.items() if (name.split("/")[0] if "/" in name else ".") == folder}
        slowest = max(inside, key=lambda name: inside[name])
        print(f"| {folder} | {total:.0f} | `{slowest}` | {inside[slowest]:.0f} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
