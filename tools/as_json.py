"""`--json` and `--quiet` of the programs that write tables: the rows of their CSV files, or nothing, are printed."""

from __future__ import annotations

import contextlib
import functools
import io
from collections.abc import Callable, Sequence

from lsam_hpc.landscape.report.tables import recorded
from lsam_hpc.util.document import document

Main = Callable[[Sequence[str]], int]


def with_json(main: Main) -> Main:
    """Return a program that prints, with --json, the tables that it writes: {path of the CSV file: [row, ...]}.

    With --quiet and without --json it prints nothing.
    """

    @functools.wraps(main)
    def program(argv: Sequence[str]) -> int:
        if not {"--json", "--quiet"} & set(argv) or {"-h", "--help"} & set(argv):
            return main(argv)
        with contextlib.redirect_stdout(io.StringIO()), recorded() as tables:
            code = main(argv)
        if tables and "--json" in argv:  # rank 0 has them
            print(document(tables))
        return code

    return program
