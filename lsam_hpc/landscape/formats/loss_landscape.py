"""Reads and writes the files of github.com/tomgoldstein/loss-landscape, whose scripts can plot the written files.

A direction file holds an array "0", "1", ... per parameter in the groups xdirection and ydirection. A surface file
holds the coordinates of a grid, and values by name. A projection file holds the coordinates of a trajectory. The
scripts ignore the datasets that we add.

Two faults of their program are corrected. A point that was not evaluated is -1 in a file; here it is NaN. Their program
fills a grid of nx by ny points row by row, in the order (ny, nx), into an array of shape (nx, ny), which no script can
plot unless nx = ny; here values have the shape (ny, nx) for both shapes in the file.

Source: Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets", and their h5_util.py, net_plotter.py,
plot_surface.py, plot_2D.py and projection.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory.newfile import new_file
from lsam_hpc.trajectory.openfile import DAMAGE, opened
from lsam_hpc.trajectory.safe import Stored, dataset, group, has

Layout = Sequence[tuple[str, tuple[int, ...], int]]
_MISSING = -1.0
_MAX_VALUES = 2**31  # largest number of values in a dataset
_EXPLAINED = "explained_variance_ratio_"  # named as scikit-learn's PCA names it
# Group in the file -> attribute of Directions; their files have no group origin.
_GROUPS = {"xdirection": "x", "ydirection": "y", "origin": "origin"}


@dataclass(frozen=True)
class Directions:
    """One or two directions, as flat vectors.

    Args:
        x: shape (P,).
        y: shape (P,) for a plane, None for a line.
        origin: the state with coordinates 0, shape (P,); None if unknown. Their files do not contain it.
        explained: share of the variance that each principal component explains, shape (2,); None for other directions.
    """

    x: NDArray[np.float32]
    y: NDArray[np.float32] | None = None
    origin: NDArray[np.float32] | None = None
    explained: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Surface:
    """Values on a grid, or on a line.

    Args:
        x: coordinates along the first direction, shape (nx,).
        y: coordinates along the second direction, shape (ny,); None for a line.
        values: by name (`train_loss`, `train_acc` in %, `test_loss`, ...), shape (ny, nx) or (nx,); NaN if not
            evaluated.
        directions: name of the direction file.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64] | None
    values: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    directions: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values."""
        return (len(self.x),) if self.y is None else (len(self.y), len(self.x))


@dataclass(frozen=True)
class Projection:
    """A trajectory on a plane.

    Args:
        x: coordinates along the first direction, shape (states,).
        y: coordinates along the second direction, shape (states,).
        more: further arrays of the same shape, by name.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    more: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def write_directions(path: Path, layout: Layout, directions: Directions) -> None:
    """Write a direction file.

    Args:
        path: must not exist.
        layout: (name, shape, offset) of each parameter, as `Run.layout`.
        directions: directions with that layout.

    Raises:
        InputError: the file cannot be made, or a vector has the wrong size.
    """
    size = sum(math.prod(shape) for _, shape, _ in layout)
    with new_file(path) as file:
        for name, attribute in _GROUPS.items():
            flat = getattr(directions, attribute)
            if flat is None:
                continue
            if flat.shape != (size,):
                raise InputError(f"{path}: expected {name} of {size} elements, found shape {flat.shape}")
            arrays = file.create_group(name)
            for index, (parameter, shape, at) in enumerate(layout):
                arrays[str(index)] = flat[at : at + math.prod(shape)].reshape(shape)
                arrays[str(index)].attrs["description"] = parameter
        if directions.explained is not None:
            file[_EXPLAINED] = directions.explained


def read_directions(path: Path, layout: Layout) -> Directions:
    """Read a direction file.

    Args:
        path: of the file.
        layout: (name, shape, offset) of each parameter, as `Run.layout`.

    Raises:
        InputError: the file cannot be read, or its directions do not have that layout.
    """
    with _reading(path) as root:
        if not has(root, "xdirection"):
            raise InputError(f"{path}: expected a direction file with a group xdirection, found none")
        flat = {key: _flat(root, name, layout, str(path)) for name, key in _GROUPS.items() if has(root, name)}
        explained = _array(root, _EXPLAINED, str(path), 1) if has(root, _EXPLAINED) else None
        return Directions(**flat, explained=explained)


def write_surface(path: Path, surface: Surface) -> None:
    """Write a surface file.

    Args:
        path: must not exist.
        surface: the surface. Their program evaluates points that are NaN. A value of exactly -1 is written as the
            next float64 above.

    Raises:
        InputError: the file cannot be made, or the shape of the values differs from that of the grid.
    """
    with new_file(path) as file:
        file["dir_file"] = surface.directions
        file["xcoordinates"] = surface.x
        if surface.y is not None:
            file["ycoordinates"] = surface.y
        for name, values in surface.values.items():
            if values.shape != surface.shape:
                raise InputError(f"{path}: expected {name} of shape {surface.shape}, found {values.shape}")
            evaluated = np.where(values == _MISSING, np.nextafter(_MISSING, 0), values)
            file[name] = np.where(np.isnan(values), _MISSING, evaluated)


def read_surface(path: Path) -> Surface:
    """Read a complete or incomplete surface file.

    Raises:
        InputError: the file cannot be read, or the shape of its values does not match its coordinates.
    """
    where = str(path)
    with _reading(path) as root:
        x = _array(root, "xcoordinates", where, 1)
        y = _array(root, "ycoordinates", where, 1) if has(root, "ycoordinates") else None
        surface = Surface(x, y)
        values = {}
        for name in root:
            if name in ("dir_file", "xcoordinates", "ycoordinates"):
                continue
            stored = _array(root, name, where, len(surface.shape))
            if stored.shape not in (surface.shape, surface.shape[::-1]):
                raise InputError(f"{where}: expected {name} of shape {surface.shape}, found {stored.shape}")
            values[name] = np.where(stored == _MISSING, np.nan, stored).reshape(surface.shape)
        return Surface(x, y, values, _text(root, "dir_file", where) if has(root, "dir_file") else "")


def write_projection(path: Path, projection: Projection) -> None:
    """Write a projection file.

    Args:
        path: must not exist.
        projection: the trajectory.

    Raises:
        InputError: the file cannot be made.
    """
    with new_file(path) as file:
        # plot_2D.py passes these datasets to matplotlib, which since 3.5 rejects one-dimensional h5py datasets.
        file["proj_xcoord"] = projection.x[:, None]
        file["proj_ycoord"] = projection.y[:, None]
        for name, values in projection.more.items():
            file[name] = values


def read_projection(path: Path) -> Projection:
    """Read a projection file.

    Raises:
        InputError: the file cannot be read, or its columns have different lengths.
    """
    with _reading(path) as root:
        columns = {name: _column(root, name, str(path)) for name in ("proj_xcoord", "proj_ycoord", *root)}
        if len({len(values) for values in columns.values()}) > 1:
            raise InputError(f"{path}: expected columns of one length, found several")
        return Projection(columns.pop("proj_xcoord"), columns.pop("proj_ycoord"), columns)


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    """Open a file; turn HDF5's errors into an InputError of one line."""
    try:
        with opened(path) as (file, _):
            yield file
    except InputError:
        raise
    except DAMAGE as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: expected a readable HDF5 file, found: {text}") from error


def _flat(root: h5py.Group, name: str, layout: Layout, where: str) -> NDArray[np.float32]:
    """Return the arrays of a group as a flat vector."""
    part = group(root, name, where)
    if len(part) != len(layout):
        raise InputError(
            f"{where}: expected {len(layout)} arrays in {name}, one per parameter, found {len(part)}"
            + (": was it made with --dir_type states, which includes buffers?" if len(part) > len(layout) else "")
        )
    flat = np.empty(sum(math.prod(shape) for _, shape, _ in layout), np.float32)
    for index, (parameter, shape, at) in enumerate(layout):
        stored = _numbers(part, str(index), f"{where}: {name}")
        if stored.shape != shape:
            raise InputError(f"{where}: expected shape {shape} of {parameter} in {name}/{index}, found {stored.shape}")
        flat[at : at + math.prod(shape)] = stored.dataset[()].reshape(-1)
    return flat


def _array(root: h5py.Group, name: str, where: str, dimensions: int) -> NDArray[np.float64]:
    stored = _numbers(root, name, where)
    if len(stored.shape) != dimensions:
        raise InputError(f"{where}: expected {dimensions} dimensions in {name}, found shape {stored.shape}")
    return np.asarray(stored.dataset[()], np.float64)


def _column(root: h5py.Group, name: str, where: str) -> NDArray[np.float64]:
    """Return numbers of shape (n,), as in their files, or (n, 1), as in ours, in shape (n,)."""
    shape = _numbers(root, name, where).shape
    return _array(root, name, where, 2 if shape[1:] == (1,) else 1).reshape(-1)


def _numbers(root: h5py.Group, name: str, where: str) -> Stored:
    """Return a dataset of plain numbers that are stored in the file itself."""
    stored = dataset(root, name, where)
    if stored.dtype.kind not in "fiu" or stored.filtered or not stored.needed <= min(stored.bytes, 8 * _MAX_VALUES):
        raise InputError(f"{where}: expected plain numbers in {name}, found {stored.dtype} in {stored.bytes} bytes")
    return stored


def _text(root: h5py.Group, name: str, where: str) -> str:
    stored = dataset(root, name, where)
    if stored.shape != () or h5py.check_string_dtype(stored.dtype) is None:
        raise InputError(f"{where}: expected a text in {name}, found {stored.dtype}")
    return str(stored.dataset.asstr()[()])
