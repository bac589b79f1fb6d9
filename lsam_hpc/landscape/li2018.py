"""Files of github.com/tomgoldstein/loss-landscape: its scripts plot ours, and we read its.

A direction file holds, in the groups xdirection and ydirection, an array "0", "1", ... per parameter; a surface file
the coordinates of a grid and a value per point and name; a projection file the coordinates of a trajectory. What we add
is not looked at by its scripts.

Two of their faults are met. A point that was not evaluated is -1 in a file, and NaN here. Their program fills a grid of
nx by ny points row by row, in the order (ny, nx), into an array of shape (nx, ny), which no script can plot unless nx
is ny: here values have the shape (ny, nx), whichever the file has.

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
_MOST = 2**31  # values of a grid
_EXPLAINED = "explained_variance_ratio_"  # named as scikit-learn's PCA names it
# Names of the groups, and the attributes of Directions that they hold; the last one is ours.
_GROUPS = {"xdirection": "x", "ydirection": "y", "origin": "origin"}


@dataclass(frozen=True)
class Directions:
    """One or two directions, as flat vectors.

    Args:
        x: shape (P,).
        y: the same for a plane, None for a line.
        origin: the state that they start from, shape (P,), None if it is not known. Their files do not hold it.
        explained: shares of the variance that principal components explain, shape (2,), None for other directions.
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
        y: along the second one, shape (ny,), None for a line.
        values: by name (`train_loss`, `train_acc` in %, `test_loss`, ...), shape (ny, nx) or (nx,); NaN: not evaluated.
        directions: name of the direction file.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64] | None
    values: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    directions: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the values."""
        return (len(self.x),) if self.y is None else (len(self.y), len(self.x))


@dataclass(frozen=True)
class Projection:
    """A trajectory on a plane.

    Args:
        x: coordinate along the first direction, shape (states,).
        y: along the second one.
        more: further arrays of that shape, by name.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    more: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def write_directions(path: Path, layout: Layout, directions: Directions) -> None:
    """Write a direction file.

    Args:
        path: must not exist.
        layout: (name, shape, offset) of each parameter, as `Run.layout`.
        directions: of that layout.

    Raises:
        InputError: the file cannot be made, or a vector is of another size.
    """
    size = sum(math.prod(shape) for _, shape, _ in layout)
    with new_file(path) as file:
        for name, what in _GROUPS.items():
            flat = getattr(directions, what)
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
        InputError: the file cannot be read, or its directions are not of that layout.
    """
    with _reading(path) as root:
        if not has(root, "xdirection"):
            raise InputError(f"{path}: expected a direction file with a group xdirection, found none")
        flat = {what: _flat(root, name, layout, str(path)) for name, what in _GROUPS.items() if has(root, name)}
        explained = _array(root, _EXPLAINED, str(path), 1) if has(root, _EXPLAINED) else None
        return Directions(**flat, explained=explained)


def write_surface(path: Path, surface: Surface) -> None:
    """Write a surface file.

    Args:
        path: must not exist.
        surface: what to write. Their program goes on with points that are NaN. A value of just -1 is written as the
            next float64.

    Raises:
        InputError: the file cannot be made, or values are of another shape than the grid.
    """
    with new_file(path) as file:
        file["dir_file"] = surface.directions
        file["xcoordinates"] = surface.x
        if surface.y is not None:
            file["ycoordinates"] = surface.y
        for name, values in surface.values.items():
            if values.shape != surface.shape:
                raise InputError(f"{path}: expected {name} of shape {surface.shape}, found {values.shape}")
            told_apart = np.where(values == _MISSING, np.nextafter(_MISSING, 0), values)
            file[name] = np.where(np.isnan(values), _MISSING, told_apart)


def read_surface(path: Path) -> Surface:
    """Read a surface file, complete or not.

    Raises:
        InputError: the file cannot be read, or holds values that do not fit its coordinates.
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
            found = _array(root, name, where, len(surface.shape))
            if found.shape not in (surface.shape, surface.shape[::-1]):
                raise InputError(f"{where}: expected {name} of shape {surface.shape}, found {found.shape}")
            values[name] = np.where(found == _MISSING, np.nan, found).reshape(surface.shape)
        return Surface(x, y, values, _text(root, "dir_file", where) if has(root, "dir_file") else "")


def write_projection(path: Path, projection: Projection) -> None:
    """Write a projection file.

    Args:
        path: must not exist.
        projection: what to write.

    Raises:
        InputError: the file cannot be made.
    """
    with new_file(path) as file:
        # plot_2D.py hands these to matplotlib as they are, and since 3.5 that takes no one-dimensional h5py dataset.
        file["proj_xcoord"] = projection.x[:, None]
        file["proj_ycoord"] = projection.y[:, None]
        for name, values in projection.more.items():
            file[name] = values


def read_projection(path: Path) -> Projection:
    """Read a projection file.

    Raises:
        InputError: the file cannot be read, or its columns are of different lengths.
    """
    with _reading(path) as root:
        found = {name: _column(root, name, str(path)) for name in ("proj_xcoord", "proj_ycoord", *root)}
        if len({len(values) for values in found.values()}) > 1:
            raise InputError(f"{path}: expected columns of one length, found several")
        return Projection(found.pop("proj_xcoord"), found.pop("proj_ycoord"), found)


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    """Open a file, and say in a line what is wrong with it."""
    try:
        with opened(path) as (file, _):
            yield file
    except InputError:
        raise
    except DAMAGE as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path}: expected a readable HDF5 file, found: {text}") from error


def _flat(root: h5py.Group, name: str, layout: Layout, where: str) -> NDArray[np.float32]:
    """Return a list of arrays as a flat vector."""
    part = group(root, name, where)
    if len(part) != len(layout):
        raise InputError(
            f"{where}: expected {len(layout)} arrays in {name}, one per parameter, found {len(part)}"
            + (": made with --dir_type states, which takes buffers in?" if len(part) > len(layout) else "")
        )
    flat = np.empty(sum(math.prod(shape) for _, shape, _ in layout), np.float32)
    for index, (parameter, shape, at) in enumerate(layout):
        found = _numbers(part, str(index), f"{where}: {name}")
        if found.shape != shape:
            raise InputError(f"{where}: expected shape {shape} of {parameter} in {name}/{index}, found {found.shape}")
        flat[at : at + math.prod(shape)] = found.dataset[()].reshape(-1)
    return flat


def _array(root: h5py.Group, name: str, where: str, dimensions: int) -> NDArray[np.float64]:
    found = _numbers(root, name, where)
    if len(found.shape) != dimensions:
        raise InputError(f"{where}: expected {dimensions} dimensions in {name}, found shape {found.shape}")
    return np.asarray(found.dataset[()], np.float64)


def _column(root: h5py.Group, name: str, where: str) -> NDArray[np.float64]:
    """Return numbers of shape (n,), theirs, or (n, 1), ours."""
    shape = _numbers(root, name, where).shape
    return _array(root, name, where, 2 if shape[1:] == (1,) else 1).reshape(-1)


def _numbers(root: h5py.Group, name: str, where: str) -> Stored:
    """Return a dataset of numbers that are all in the file."""
    found = dataset(root, name, where)
    if found.dtype.kind not in "fiu" or found.filtered or not found.needed <= min(found.bytes, 8 * _MOST):
        raise InputError(f"{where}: expected plain numbers in {name}, found {found.dtype} in {found.bytes} bytes")
    return found


def _text(root: h5py.Group, name: str, where: str) -> str:
    found = dataset(root, name, where)
    if found.shape != () or h5py.check_string_dtype(found.dtype) is None:
        raise InputError(f"{where}: expected a text in {name}, found {found.dtype}")
    return str(found.dataset.asstr()[()])
