"""The head of a rank's file: its attributes, the layout of the flat vectors, and the map that made its sketches."""

from __future__ import annotations

import json
import math
import platform
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory import schema
from lsam_hpc.trajectory.safe import attribute, group, has, numbers, texts
from lsam_hpc.trajectory.sketch import CountSketch, Group

Layout = list[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Head:
    """The part of a rank's file that is written when the file is made."""

    attributes: dict[str, str | int | float]
    layout: Layout
    sketch: CountSketch | None = None  # the map that made the sketches, None without sketches

    @property
    def size(self) -> int:
        """Number of elements of the flat vectors."""
        return sum(math.prod(shape) for _, shape in self.layout)

    @property
    def offsets(self) -> list[int]:
        """First element of each parameter in a flat vector."""
        ends = np.cumsum([0, *(math.prod(shape) for _, shape in self.layout)], dtype=np.int64)
        return [int(end) for end in ends[:-1]]

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of the further dimensions of long columns."""
        sketch = {"groups": len(self.sketch.groups), "buckets": self.sketch.buckets} if self.sketch else {}
        return {"parameters": self.size, **sketch}

    @property
    def crc(self) -> int:
        """CRC-32 of the attributes, the layout and the sketch map."""
        sketch = self.sketch and [self.sketch.size, self.sketch.buckets, self.sketch.seed, self.sketch.groups]
        attributes = {name: value for name, value in sorted(self.attributes.items()) if name != "head_crc"}
        return zlib.crc32(json.dumps([attributes, self.layout, sketch]).encode())

    def write(self, root: h5py.Group) -> None:
        """Write the head into a new file."""
        for name, value in {**self.attributes, "head_crc": self.crc}.items():
            root.attrs[name] = value
        names, shapes = zip(*self.layout, strict=True) if self.layout else ((), ())
        layout = root.create_group("layout")
        layout.attrs["description"] = "where each parameter is in a flat vector"
        layout.attrs["size"] = self.size
        layout["name"] = _texts(names)
        layout["shape"] = _texts([",".join(map(str, shape)) for shape in shapes])
        layout["offset"] = np.array(self.offsets, np.int64)
        if self.sketch is not None:
            sketch = root.create_group("sketch")
            sketch.attrs["description"] = "CountSketches, see lsam_hpc.trajectory.sketch: inner products and distances"
            for name in schema.SKETCH_ATTRIBUTES:
                sketch.attrs[name] = getattr(self.sketch, name)
            groups = sketch.create_group("groups")
            groups["name"] = _texts([g.name for g in self.sketch.groups])
            for name in ("start", "stop"):
                groups[name] = np.array([getattr(g, name) for g in self.sketch.groups], np.int64)
        for part in ("layout", "sketch/groups"):
            for name, text in {**schema.LAYOUT, **schema.GROUPS}.items():
                if f"{part}/{name}" in root:
                    root[f"{part}/{name}"].attrs["description"] = text


def creator() -> str:
    """Return the names and versions of the programs that write a file."""
    versions = {"h5py": h5py.__version__, "HDF5": h5py.version.hdf5_version, "numpy": np.__version__}
    return ", ".join(["lsam-hpc", *(f"{k} {v}" for k, v in versions.items()), f"Python {platform.python_version()}"])


def read_head(root: h5py.Group, where: str) -> Head:
    """Read and check the head of a rank's file.

    Args:
        root: the file, or the rank's group in a file of all ranks.
        where: name of the file or group in messages.

    Raises:
        InputError: it is no trajectory log, its version is unknown, or it is damaged.
    """
    file_format = attribute(root, "format")
    if file_format != schema.FORMAT:
        raise InputError(f"{where}: expected a file of format '{schema.FORMAT}', found {file_format!r}")
    version = attribute(root, "schema_version")
    if version not in schema.READABLE:
        known = ", ".join(map(str, schema.READABLE[:-1])) + f" or {schema.READABLE[-1]}"
        raise InputError(f"{where}: expected schema version {known}, found {version!r}")
    if version == 1 and "head_crc" in root.attrs:
        raise InputError(f"{where}: expected schema version 2 or later in a file with check sums, found 1")
    attributes: dict[str, str | int | float] = {}
    for name, declared in schema.ATTRIBUTES.items():
        if declared.since > version:
            continue
        value = attribute(root, name)
        if value is None:
            raise InputError(f"{where}: expected the attribute {name}, found none: the writer was killed at its start")
        if not isinstance(value, declared.kind):
            raise InputError(f"{where}: expected {name} of type {declared.kind.__name__}, found {value!r:.60}")
        attributes[name] = value
    shapes = [tuple(int(n) for n in text.split(",") if n) for text in texts(root, "layout/shape", where)]
    names = texts(root, "layout/name", where)
    if len(names) != len(shapes):
        raise InputError(f"{where}: expected a shape for each of {len(names)} names in layout, found {len(shapes)}")
    sketch = _sketch(root, where) if version > 1 and has(root, "sketch") else None
    head = Head(attributes, list(zip(names, shapes, strict=True)), sketch)
    if numbers(root, "layout/offset", where).tolist() != head.offsets:
        raise InputError(f"{where}: expected offsets that follow from the shapes in layout, found others")
    if version > 1 and head.crc != attributes["head_crc"]:
        raise InputError(f"{where}: expected the check sum head_crc, found another check sum: the file is damaged")
    return head


def _sketch(root: h5py.Group, where: str) -> CountSketch:
    part = group(root, "sketch", where)
    values = [attribute(part, name) for name in schema.SKETCH_ATTRIBUTES]
    if not all(isinstance(n, int) and n >= 0 for n in values):
        raise InputError(f"{where}: expected integers of 0 or more in the attributes of sketch, found {values!r:.60}")
    names = texts(root, "sketch/groups/name", where)
    starts, stops = (numbers(root, f"sketch/groups/{name}", where).tolist() for name in ("start", "stop"))
    if not len(names) == len(starts) == len(stops):
        raise InputError(f"{where}: expected columns of one length in sketch/groups, found different lengths")
    size, buckets, seed = values
    try:
        return CountSketch(size, tuple(map(Group, names, starts, stops)), buckets, seed)  # type: ignore[arg-type]
    except InputError as error:
        raise InputError(f"{where}: sketch: {error}") from error


def _texts(values: Sequence[str]) -> Any:  # noqa: ANN401
    return np.array(values, dtype=h5py.string_dtype())
