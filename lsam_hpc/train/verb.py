"""`lsam train`: shows its options without importing torch or MPI."""

from __future__ import annotations

from collections.abc import Sequence

from lsam_hpc.train.config import parse


def main(argv: Sequence[str]) -> int:
    """Run `lsam train` on this rank; return its exit code."""
    if {"-h", "--help"} & set(argv):
        parse(argv)  # prints the help and exits
    from lsam_hpc.train import loop
    from lsam_hpc.train.lost import resumable

    with resumable():
        return loop.main(argv)
