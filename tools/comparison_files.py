"""The files of a comparison of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lsam_hpc.landscape.compare.comparison import Comparison
from lsam_hpc.landscape.figures.stored import Stored
from lsam_hpc.landscape.report.tables import places, write_arrays, write_csv
from lsam_hpc.tools import source

DEFAULT_OUT = "figures"  # folder of a comparison without --out


def write(comparison: Comparison, stored: Stored, out: Mapping[str, Path], *, other: bool = False) -> None:
    """Draw a comparison and write its numbers.

    Args:
        comparison: of runs.
        stored: the numbers that its figure shows.
        out: paths of the files, by suffix.
        other: whether the data are of `--make-batches`, which have no split.
    """
    columns = dict(comparison.columns)
    if other and "split" in columns:
        columns["split"] = ["other"] * len(columns["split"])
    write_csv(out[".csv"], columns)
    figure = {"kind": stored.kind, "title": stored.title, **stored.notes}
    write_arrays(out[".h5"], stored.arrays, {"figure": figure})
    comparison.draw(next(path for suffix, path in out.items() if suffix not in (".csv", ".h5")))


def new_files(folder: Path, name: str, suffixes: Sequence[str], *, overwrite: bool) -> dict[str, Path]:
    """Return the paths of a comparison's files by suffix; check that they can be written, see `places`."""
    source.check_writable(folder)
    return places(folder, name, suffixes, overwrite=overwrite)
