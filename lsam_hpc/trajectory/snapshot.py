"""Options of snapshots: at which steps, of which states, in which format; and conversion to and from the format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory import schema

DTYPES = {"float32": "f4", "bfloat16": "u2"}
# Name -> whether bytes are shuffled first. h5py has gzip and lzf; the package hdf5plugin adds blosc2 and zstd.
COMPRESSIONS = {"none": False, "gzip": True, "lzf": True, "blosc2": False, "zstd": True}
# Filters that a reader accepts: shuffle, gzip, lzf, zstd, blosc2.
FILTERS = (1, 2, 32000, 32015, 32026)


@dataclass(frozen=True)
class Snapshots:
    """Which states are stored in full, at which steps and in which format.

    Args:
        every: steps between snapshots, or "log" (default) for steps 0, 1, 2, 4, 8, ...; where states are shown at
            exchanges only, the first exchange at or after each of these steps.
        states: of `schema.STATES`. Default: sample and center.
        dtype: on disk, "float32" (default) or "bfloat16", rounded to nearest, half the bytes.
        compression: "gzip" (default), "lzf" or "none"; "blosc2" or "zstd", with the package hdf5plugin.

    Raises:
        InputError: a value is not one of those, or hdf5plugin is missing.
    """

    every: int | str = "log"
    states: tuple[str, ...] = ("sample", "center")
    dtype: str = "float32"
    compression: str = "gzip"

    def __post_init__(self) -> None:
        if self.every != "log" and (isinstance(self.every, str) or self.every < 1):
            raise InputError(f"snapshots: expected a number of steps of 1 or more, or 'log', found {self.every!r}")
        check_states("snapshots", self.states)
        for name, value, known in (("dtype", self.dtype, DTYPES), ("compression", self.compression, COMPRESSIONS)):
            if value not in known:
                raise InputError(f"snapshots: expected a {name} of {', '.join(known)}, found {value!r}")
        self.filters()

    def due(self, step: int, last: int | None = None) -> bool:
        """Return whether a snapshot is to be taken at a step.

        Args:
            step: 0, 1, ...
            last: step of the previous call, -1 before the first: a snapshot is due if a step that `every` selects lies
                after `last`, up to `step`. Default: the step before.
        """
        return self._selected(step) > self._selected(step - 1 if last is None else last)

    def filters(self) -> dict[str, Any]:
        """Return the arguments of h5py's create_dataset for the compression.

        Raises:
            InputError: it needs hdf5plugin, which is missing.
        """
        arguments: dict[str, Any] = {"shuffle": COMPRESSIONS[self.compression]}
        if self.compression in ("gzip", "lzf"):
            arguments["compression"] = self.compression
        elif self.compression != "none":
            try:
                import hdf5plugin
            except ImportError as error:
                raise InputError(
                    f"snapshots: expected the package hdf5plugin for {self.compression}, found none"
                ) from error
            blosc2 = hdf5plugin.Blosc2("zstd", filters=hdf5plugin.Blosc2.SHUFFLE)
            arguments |= blosc2 if self.compression == "blosc2" else hdf5plugin.Zstd()
        return arguments

    def _selected(self, step: int) -> int:
        """Return how many of the steps 1 to `step` `every` selects; -1 if `step` is negative."""
        if step < 0:
            return -1
        return step // self.every if isinstance(self.every, int) else step.bit_length()

    def encode(self, vector: NDArray[np.floating[Any]]) -> NDArray[Any]:
        """Return a copy of a flat vector in the stored type, shape (P,)."""
        values = np.array(vector, dtype=np.float32).reshape(-1)
        return to_bfloat16(values) if self.dtype == "bfloat16" else values


def check_states(name: str, states: tuple[str, ...]) -> None:
    """Raise InputError, which begins with `name`, if a state is not in `schema.STATES`."""
    if wrong := set(states) - set(schema.STATES):
        raise InputError(f"{name}: expected states of {', '.join(schema.STATES)}, found {', '.join(sorted(wrong))}")


def decode(stored: NDArray[Any]) -> NDArray[np.float32]:
    """Return values that `Snapshots.encode` made as float32."""
    if stored.dtype.kind == "u":
        return (stored.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return stored.astype(np.float32, copy=False)


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Return the upper halves of float32 values, rounded to nearest, ties to even; NaN stays NaN."""
    out = np.empty(values.shape, np.uint16)
    for at in range(0, values.size, schema.SNAPSHOT_ELEMENTS):  # in parts, so that temporary arrays are small
        part = values[at : at + schema.SNAPSHOT_ELEMENTS]
        bits = part.view(np.uint32)
        upper = bits >> np.uint32(16)
        rounded = (bits + np.uint32(0x7FFF) + (upper & np.uint32(1))) >> np.uint32(16)
        # Rounding can carry a NaN over to zero. So a NaN is not rounded, and its quiet bit is set.
        out[at : at + part.size] = np.where(np.isnan(part), upper | np.uint32(0x40), rounded)
    return out
