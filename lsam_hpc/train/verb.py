"""`lsam train`: its options are shown without what the training needs."""

from __future__ import annotations

from collections.abc import Sequence

from lsam_hpc.train.config import parse


def main(argv: Sequence[str]) -> int:
    """Run `lsam train` on this rank; return its exit code."""
    if {"-h", "--help"} & set(argv):
        parse(argv)  # shows them and leaves
    from lsam_hpc.train import loop

    return loop.main(argv)
