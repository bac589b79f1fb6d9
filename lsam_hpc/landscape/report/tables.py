"""Writes the numbers of a figure: CSV for people and spreadsheets, HDF5 for programs."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory.openfile import DAMAGE, opened
from lsam_hpc.util.files import atomic_path

_recorded: dict[str, list[dict[str, Any]]] | None = None  # see `recorded`
NOTES = "lsam_hpc"  # attribute of HDF5 files: how the numbers were made, as JSON


def places(folder: Path, name: str, suffixes: Sequence[str], *, overwrite: bool) -> dict[str, Path]:
    """Return the paths of files to write, by suffix; check that they may be written.

    Args:
        folder: folder of the files.
        name: common name of the files, without suffix.
        suffixes: of the files, such as ".h5".
        overwrite: allow existing files.

    Raises:
        InputError: a file exists and `overwrite` is False, or the name is empty or contains a folder.
    """
    if not name or Path(name).name != name:
        raise InputError(f"--name: expected a name without folders, found {name!r}")
    paths = {suffix: folder / f"{name}{suffix}" for suffix in suffixes}
    existing = [path for path in paths.values() if path.exists()]
    if existing and not overwrite:
        raise InputError(f"{existing[0]}: expected no such file, found one: choose another --name, or --overwrite")
    return paths


@contextmanager
def recorded() -> Iterator[dict[str, list[dict[str, Any]]]]:
    """Keep the rows of all CSV files that are written: {path: [{column: value}, ...]}."""
    global _recorded
    before, _recorded = _recorded, {}
    try:
        yield _recorded
    finally:
        _recorded = before


def write_csv(path: Path, columns: Mapping[str, Sequence[Any] | np.ndarray[Any, Any]]) -> Path:
    """Write columns of equal length, replacing an existing file; numbers are exact, and NaN is an empty cell."""
    if _recorded is not None:
        _recorded[str(path)] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path.unlink(missing_ok=True)
    with atomic_path(path) as part, part.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*(map(_cell, values) for values in columns.values()), strict=True))
    return path


def write_arrays(path: Path, arrays: Mapping[str, Any], notes: Mapping[str, Any]) -> Path:
    """Write arrays under their names, replacing an existing file.

    Args:
        path: of the file.
        arrays: numbers, or lists of texts.
        notes: how they were made, written as JSON into the attribute `lsam_hpc`.
    """
    path.unlink(missing_ok=True)
    with atomic_path(path) as part, h5py.File(part, "w") as file:
        for name, values in arrays.items():
            texts = isinstance(values, (list, tuple)) and bool(values) and isinstance(values[0], str)
            file.create_dataset(name, data=values, dtype=h5py.string_dtype() if texts else None)
        file.attrs[NOTES] = json.dumps(notes)
    return path


def note(path: Path, notes: Mapping[str, Any]) -> None:
    """Write notes into an existing HDF5 file, see `write_arrays`."""
    with h5py.File(path, "r+") as file:
        file.attrs[NOTES] = json.dumps(notes)


def notes_of(path: Path) -> dict[str, Any]:
    """Return the notes in an HDF5 file, see `write_arrays`; empty if it cannot be read or there are none."""
    try:
        with opened(path) as (file, _):
            notes = json.loads(str(file.attrs.get(NOTES, "{}")))
    except (InputError, *DAMAGE):
        return {}
    return notes if isinstance(notes, dict) else {}


def numbers_of(file: h5py.File) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arrays of a file, without vectors of parameters, texts as lists, and its notes; see `write_arrays`."""
    arrays: dict[str, Any] = {}

    def add(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and not name.endswith(("eigenvectors", "directions", "origin")):
            texts = h5py.check_string_dtype(item.dtype) is not None
            arrays[name] = np.asarray(item.asstr()[()]).tolist() if texts else item[()]

    file.visititems(add)
    return arrays, json.loads(file.attrs[NOTES]) if NOTES in file.attrs else {}


def _cell(value: Any) -> Any:  # noqa: ANN401 (any cell)
    number = isinstance(value, (float, np.floating))
    return "" if number and np.isnan(value) else (repr(float(value)) if number else value)
