"""Reads parts of a file from an untrusted source: opens no other file, reads no more than the file can hold."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory.snapshot import FILTERS

# No known compression expands a byte to more bytes than this.
EXPANSION = 2**15


class Stored(NamedTuple):
    """A dataset, and how it is stored."""

    dataset: h5py.Dataset
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...] | None
    filtered: bool
    bytes: int  # in the file

    @property
    def needed(self) -> int:
        """Bytes of the values in memory."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def rows(self) -> int:
        """Number of rows that the bytes in the file can hold, at most the dataset's length."""
        if not self.needed:
            return self.shape[0]
        room = self.bytes * (EXPANSION if self.filtered else 1)
        return min(self.shape[0], room // (self.needed // self.shape[0]))


def attribute(part: h5py.Group, name: str) -> str | int | float | None:
    """Return an attribute that is one text or number, or None if it does not exist.

    Raises:
        InputError: it is of another type.
    """
    attributes = part.attrs
    if name not in attributes:
        return None
    handle = attributes.get_id(name)
    if handle.shape not in ((), None) or handle.dtype.kind not in "OSifu" or not _plain(handle.dtype):
        raise InputError(f"{part.file.filename}: expected a text or a number in {name}, found {handle.dtype}")
    value = attributes[name]
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, str):
        value.encode()  # h5py keeps invalid UTF-8 as surrogates: raise UnicodeError for it, as for other texts
    return value.item() if isinstance(value, np.generic) else value  # type: ignore[no-any-return]


def group(root: h5py.Group, path: str, where: str) -> h5py.Group:
    """Return a group that is stored in this file.

    Raises:
        InputError: it is missing, a link to elsewhere, or no group.
    """
    member = _member(root, path, where)
    if not isinstance(member, h5py.Group):
        raise InputError(f"{where}: expected a group {path}, found {member}")
    return member


def dataset(root: h5py.Group, path: str, where: str) -> Stored:
    """Return a dataset whose values are stored in this file, with known filters.

    Raises:
        InputError: it is missing, its values are elsewhere, a filter is unknown, or it is no dataset.
    """
    member = _member(root, path, where)
    if not isinstance(member, h5py.Dataset):
        raise InputError(f"{where}: expected a dataset {path}, found {member}")
    properties = member.id.get_create_plist()
    layout = properties.get_layout()
    if layout == h5py.h5d.VIRTUAL or properties.get_external_count():
        raise InputError(f"{where}: expected the values of {path} in this file, found a reference to another file")
    filters = [properties.get_filter(index)[0] for index in range(properties.get_nfilters())]
    for number in filters:
        if number not in FILTERS:
            raise InputError(f"{where}: expected a known filter in {path}, found number {number}")
        if number in FILTERS[3:] and not h5py.h5z.filter_avail(number):
            _load_plugins(path, where)
    return Stored(
        member,
        member.shape or (),
        member.dtype,
        properties.get_chunk() if layout == h5py.h5d.CHUNKED else None,
        bool(filters),
        int(member.id.get_storage_size()),
    )


def texts(root: h5py.Group, path: str, where: str) -> list[str]:
    """Return a one-dimensional dataset of texts.

    Raises:
        InputError: it holds something else.
    """
    stored = dataset(root, path, where)
    if h5py.check_string_dtype(stored.dtype) is None or len(stored.shape) != 1 or stored.needed > stored.bytes:
        raise InputError(f"{where}: expected texts in {path}, found {stored.dtype} in {stored.bytes} bytes")
    return [str(text) for text in stored.dataset.asstr()[:]]


def numbers(root: h5py.Group, path: str, where: str) -> NDArray[np.int64]:
    """Return a one-dimensional dataset of int64.

    Raises:
        InputError: it holds something else.
    """
    stored = dataset(root, path, where)
    if stored.dtype != np.dtype("i8") or len(stored.shape) != 1 or stored.needed > stored.bytes:
        raise InputError(f"{where}: expected int64 in {path}, found {stored.dtype} in {stored.bytes} bytes")
    return stored.dataset[:]  # type: ignore[no-any-return]


def has(part: h5py.Group, name: str) -> bool:
    """Return whether a group has a member of this name, without following links."""
    return bool(part.id.links.exists(name.encode()))


def _member(root: h5py.Group, path: str, where: str) -> h5py.Group | h5py.Dataset | None:
    """Return a member of a group that is stored in this file, None if it is neither a group nor a dataset."""
    part: Any = root
    for name in path.split("/"):
        # h5py's `name in group` would open the file that an external link names.
        if not isinstance(part, h5py.Group) or not has(part, name):
            raise InputError(f"{where}: expected {path}, found none")
        if part.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
            raise InputError(f"{where}: expected {path} in this file, found a link to elsewhere")
        handle = h5py.h5o.open(part.id, name.encode())
        kinds = {h5py.h5g.GroupID: h5py.Group, h5py.h5d.DatasetID: h5py.Dataset}
        part = kinds[type(handle)](handle) if type(handle) in kinds else None
    return part


def _plain(dtype: np.dtype[Any]) -> bool:
    return dtype.kind != "O" or h5py.check_string_dtype(dtype) is not None


def _load_plugins(path: str, where: str) -> None:
    try:
        import hdf5plugin  # noqa: F401 - importing it registers its filters
    except ImportError as error:
        raise InputError(f"{where}: expected the package hdf5plugin, which {path} needs, found none") from error
