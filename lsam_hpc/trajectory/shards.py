"""Reads the log of a chain whose ranks each hold a part of the model: its snapshots are in a file of each rank."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory import schema
from lsam_hpc.trajectory.log import RankLog
from lsam_hpc.trajectory.rows import Columns


class Piece(NamedTuple):
    """Elements of a parameter that one rank holds."""

    start: int  # in the rank's vector
    stop: int
    at: int  # in the whole vector


class ShardedLog(RankLog):
    """A chain's log with snapshots in parts: of each parameter, rank i of the chain has the i-th part of its rows.

    Args:
        path: of the chain's file.
        shards: files of its ranks, in order.
        partial: as of `RankLog`.

    Raises:
        InputError: as `RankLog`, or the parts are not the whole.
    """

    def __init__(self, path: Path, shards: Sequence[Path], *, partial: bool = False) -> None:
        super().__init__(path, partial=partial)
        self._shards = [RankLog(shard, partial=partial) for shard in shards]
        for shard in self._shards:
            shard.problems = self.problems
        self._pieces = self._located()

    @property
    def tables(self) -> list[str]:
        """Names of the tables that the log has."""
        have = {*self.in_file, *self._parted}
        return [name for name in schema.TABLES if name in have]

    @property
    def _parted(self) -> list[str]:
        return [name for name in self._shards[0].tables if name.startswith("snapshot/")]

    def read(self, *names: str) -> list[Columns]:
        """Return several tables, see `table`; of snapshots, the rows that all parts have."""
        whole = [name for name in names if not name.startswith("snapshot/")]
        tables = dict(zip(whole, super().read(*whole), strict=True))
        return [tables[name] if name in tables else self._matched(name)[0] for name in names]

    def counts(self) -> dict[str, int]:
        """Return the number of rows of each table, see `RankLog.counts`."""
        return {**super().counts(), **{name: self.rows(name) for name in self._parted}}

    def values(self, name: str, rows: slice = slice(None)) -> tuple[Columns, NDArray[np.float32]]:
        """Return a table of sketches or snapshots and its long column, see `RankLog.values`."""
        if not name.startswith("snapshot/"):
            return super().values(name, rows)
        table, places = self._matched(name)
        chosen = range(len(table["iteration"]))[rows]
        vectors = {row: self._vector(name, places[row]) for row in chosen}
        good = [row for row, vector in vectors.items() if vector is not None]
        stacked = [vector for vector in vectors.values() if vector is not None]
        return (
            {key: column[good] for key, column in table.items()},
            np.stack(stacked) if stacked else np.empty((0, self.size), np.float32),
        )

    def whole(self, name: str) -> list[int]:
        """Return which rows can be read, see `RankLog.whole`."""
        if not name.startswith("snapshot/"):
            return super().whole(name)
        places = self._matched(name)[1]
        return [row for row, part in enumerate(places) if not self.partial or self._vector(name, part) is not None]

    def blocks(self, name: str, rows: Sequence[int]) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield ranges of elements of snapshots, see `RankLog.blocks`; the ranges are in no order."""
        places = self._matched(name)[1]
        for index, (shard, pieces) in enumerate(zip(self._shards, self._pieces, strict=True)):
            for first, block in shard.blocks(name, [int(places[row][index]) for row in rows]):
                end = first + block.shape[1]
                for piece in pieces:
                    start, stop = max(piece.start, first), min(piece.stop, end)
                    if start < stop:
                        yield piece.at + start - piece.start, block[:, start - first : stop - first]

    def snapshot_dtype(self, state: str) -> str:
        """Return the type in which snapshots of a state are stored, see `RankLog.snapshot_dtype`."""
        return self._shards[0].snapshot_dtype(state)

    def _matched(self, name: str) -> tuple[Columns, NDArray[np.intp]]:
        """Return the rows that all parts have, and their numbers in each part, shape (rows, parts).

        A killed rank's file may lack the last rows, and one on a slow disk any.
        """
        tables = [shard.table(name) for shard in self._shards]
        numbered = [_numbered(table["iteration"].tolist()) for table in tables]
        keys = [key for key in numbered[0] if all(key in numbers for numbers in numbered)]
        places = np.array([[numbers[key] for numbers in numbered] for key in keys], np.intp)
        first = [numbered[0][key] for key in keys]
        return {key: column[first] for key, column in tables[0].items()}, places

    def _vector(self, name: str, places: NDArray[np.intp]) -> NDArray[np.float32] | None:
        """Return a snapshot, given its row in each part, or None if a part is damaged and may be left out."""
        vector = np.empty(self.size, np.float32)
        for shard, pieces, place in zip(self._shards, self._pieces, places.tolist(), strict=True):
            _, values = shard.values(name, slice(place, place + 1))
            if len(values) == 0:
                return None
            for piece in pieces:
                vector[piece.at : piece.at + piece.stop - piece.start] = values[0, piece.start : piece.stop]
        return vector

    def _located(self) -> list[list[Piece]]:
        """Return each part's elements in the whole vector, or raise InputError if the parts are not the whole."""
        located: list[list[Piece]] = [[] for _ in self._shards]
        for index, (name, shape, at) in enumerate(self.layout):
            parts = [shard.layout[index] if index < len(shard.layout) else ("none", (), 0) for shard in self._shards]
            for (_, part, start), pieces in zip(parts, located, strict=True):
                pieces.append(Piece(start, start + math.prod(part), at))
                at += math.prod(part)
            rows = sum(part[0] for _, part, _ in parts if part)
            if {(other, part[1:]) for other, part, _ in parts} != {(name, shape[1:])} or (rows, *shape[1:]) != shape:
                found = ", ".join(str(part) for _, part, _ in parts)
                raise InputError(f"{self.where}: expected parts of {name} that make up {shape}, found {found}")
        return located


def open_log(path: Path, *, partial: bool = False) -> RankLog:
    """Return the log in a file, with the files of snapshots in parts that are beside it; arguments as of `RankLog`."""
    named = re.compile(re.escape(path.stem) + r"-shard-(\d{4,9})\.h5")
    shards = {int(match[1]): file for file in path.parent.iterdir() if (match := named.fullmatch(file.name))}
    if not shards:
        return RankLog(path, partial=partial)
    return ShardedLog(path, [shards[index] for index in sorted(shards)], partial=partial)


def _numbered(iterations: Sequence[int]) -> dict[tuple[int, int], int]:
    """Return the number of each row by its iteration and how many earlier rows have the same one."""
    seen: Counter[int] = Counter()
    rows = {}
    for row, iteration in enumerate(iterations):
        rows[iteration, seen[iteration]] = row
        seen[iteration] += 1
    return rows
