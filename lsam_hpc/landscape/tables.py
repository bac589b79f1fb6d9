"""Numbers beside a figure: CSV for people and spreadsheets, HDF5 for programs."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.files import appearing

NOTES = "lsam_hpc"  # attribute of HDF5 files: what the numbers were made with, JSON


def places(folder: Path, name: str, suffixes: Sequence[str], overwrite: bool) -> dict[str, Path]:
    """Return the paths of files that are to be written, by suffix, once nothing is in their way.

    Args:
        folder: where.
        name: that they share.
        suffixes: of each, as ".h5".
        overwrite: remove those that are there; else they are refused.

    Raises:
        InputError: one is there, or the name is none.
    """
    if not name or Path(name).name != name:
        raise InputError(f"--name: expected a name without folders, found {name!r}")
    found = {suffix: folder / f"{name}{suffix}" for suffix in suffixes}
    there = [path for path in found.values() if path.exists()]
    if there and not overwrite:
        raise InputError(f"{there[0]}: expected no such file, found one: choose another --name, or --overwrite")
    return found


def write_csv(path: Path, columns: Mapping[str, Sequence[Any] | np.ndarray[Any, Any]]) -> Path:
    """Write columns of equal length, a file that is there is replaced; numbers are exact, NaN is empty."""
    path.unlink(missing_ok=True)
    with appearing(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(map(_cell, values) for values in columns.values()), strict=True))
    return path


def write_arrays(path: Path, arrays: Mapping[str, Any], notes: Mapping[str, Any]) -> Path:
    """Write arrays under their names, a file that is there is replaced.

    Args:
        path: of the file.
        arrays: numbers, or lists of texts.
        notes: what they were made with, kept as JSON in the attribute `lsam_hpc`.
    """
    path.unlink(missing_ok=True)
    with appearing(path) as part, h5py.File(part, "w") as file:
        for name, values in arrays.items():
            texts = isinstance(values, (list, tuple)) and bool(values) and isinstance(values[0], str)
            file.create_dataset(name, data=values, dtype=h5py.string_dtype() if texts else None)
        file.attrs[NOTES] = json.dumps(notes)
    return path


def note(path: Path, notes: Mapping[str, Any]) -> None:
    """Add notes to an HDF5 file that another format's writer made."""
    with h5py.File(path, "r+") as file:
        file.attrs[NOTES] = json.dumps(notes)


def _cell(value: Any) -> Any:  # noqa: ANN401
    number = isinstance(value, (float, np.floating))
    return "" if number and np.isnan(value) else (repr(float(value)) if number else value)
