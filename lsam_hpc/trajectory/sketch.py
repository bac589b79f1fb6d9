"""Sketches: a thousand numbers per state that preserve inner products and distances between states of any ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError

ROWS = 64  # first-stage buckets per bucket of the sketch


class Group(NamedTuple):
    """A contiguous part of the flat vectors."""

    name: str
    start: int
    stop: int


class Piece(NamedTuple):
    """Contiguous elements of the flat vector that are added, with signs, to contiguous first-stage buckets."""

    start: int
    stop: int
    group: int
    offset: int  # in the block, where the element signs are
    bucket: int
    negative: bool


@dataclass(frozen=True)
class CountSketch:
    """A linear map from P elements to `buckets` numbers per group that preserves inner products and distances.

    It is a CountSketch in two stages, so that the long vector is only multiplied and added, never scattered. Blocks of
    M = 64 * buckets elements get random signs, are rotated by a random lag and are added with one random sign per
    block; then the M sums get signs again, are permuted, and each 64 of them are added. Two elements collide with a
    probability below 1 / buckets, and for states a and b

        E <S a, S b> = <a, b>,    Var <S a, S b> <= (|a|^2 |b|^2 + <a, b>^2) / buckets * (1 + 1/16).

    The same size, groups, buckets and seed give the same map on every rank and device; the sketch of the whole vector
    is the sum of the groups' sketches. Vectors of at most `buckets` elements are kept exactly.

    Args:
        size: P, number of elements of the flat vectors.
        groups: contiguous parts of the vector, in order and without gaps. Default: one, the whole vector.
        buckets: numbers per group. Default 1024.
        seed: of the signs, lags and the permutation. Default 0.

    Raises:
        InputError: `buckets` is below 1, or the groups do not cover the vector.

    Source: Charikar, Chen and Farach-Colton 2002, "Finding frequent items in data streams", for one stage.
    """

    size: int
    groups: tuple[Group, ...] = ()
    buckets: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.groups:
            object.__setattr__(self, "groups", (Group("all", 0, self.size),))
        ends = [0, *(group.stop for group in self.groups)]
        if [group.start for group in self.groups] != ends[:-1] or ends[-1] != self.size or ends != sorted(ends):
            raise InputError(f"groups: expected parts that cover {self.size} elements in order, found {self.groups}")
        if self.buckets < 1:
            raise InputError(f"buckets: expected 1 or more, found {self.buckets}")

    @property
    def width(self) -> int:
        """Number M of first-stage buckets, a multiple of `buckets`."""
        return self.buckets * max(1, min(ROWS, -(-self.size // self.buckets)))

    @cached_property
    def signs(self) -> NDArray[np.float32]:
        """Signs of the elements of a block before its rotation, shape (M,)."""
        return _signs(self._random(0, self.width))

    @cached_property
    def bucket_signs(self) -> NDArray[np.float32]:
        """Signs of the first-stage buckets in the order of `permutation`, shape (buckets, M / buckets)."""
        return _signs(self._random(1, self.width)).reshape(self.buckets, -1)

    @cached_property
    def permutation(self) -> NDArray[np.int64]:
        """First-stage buckets, in the order in which each M / buckets of them are added, shape (M,)."""
        return np.argsort(self._random(2, self.width), kind="stable")

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield the pieces of the elements start to stop of the flat vector."""
        width = self.width
        for index, group in enumerate(self.groups):
            at, end = max(start, group.start), min(stop, group.stop)
            while at < end:
                block, offset = divmod(at, width)
                lag, negative = self._lags[block]
                bucket = (offset + lag) % width
                count = min(end - at, width - offset, width - bucket)
                yield Piece(at, at + count, index, offset, bucket, negative)
                at += count

    def __call__(self, *tensors: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Return the sketch, shape (groups, buckets), of a flat vector or of its parts in order.

        Raises:
            InputError: they have not P elements together.
        """
        sums = np.zeros((len(self.groups), self.width), np.float32)
        signed = np.empty(self.width, np.float32)
        for flat, at in parts(self.size, [(tensor.reshape(-1), tensor.size) for tensor in tensors]):
            for piece in self.pieces(at, at + flat.size):
                count = piece.stop - piece.start
                run = flat[piece.start - at : piece.stop - at]
                np.multiply(run, self.signs[piece.offset : piece.offset + count], out=signed[:count])
                into = sums[piece.group, piece.bucket : piece.bucket + count]
                (np.subtract if piece.negative else np.add)(into, signed[:count], out=into)
        mixed = np.take(sums, self.permutation, axis=1).reshape(-1, *self.bucket_signs.shape)
        sketch: NDArray[np.float32] = np.einsum("gbk,bk->gb", mixed, self.bucket_signs)
        return sketch

    @cached_property
    def _lags(self) -> list[tuple[int, bool]]:
        words = self._random(3, -(-self.size // self.width))
        return list(zip((words % np.uint64(self.width)).tolist(), (words >> np.uint64(63) == 1).tolist(), strict=True))

    def _random(self, stream: int, count: int) -> NDArray[np.uint64]:
        """Return the first 64-bit words of one of the map's random streams: the same on every machine."""
        key = _splitmix(np.array([self.seed % 2**64], np.uint64) * np.uint64(4) + np.uint64(stream))
        return _splitmix(_splitmix(np.arange(count, dtype=np.uint64)) ^ key)


def parts(size: int, tensors: Sequence[tuple[Any, int]]) -> Iterator[tuple[Any, int]]:
    """Yield each (flat tensor, number of elements) of a vector as (flat tensor, its first element in the vector).

    Raises:
        InputError: they have not `size` elements together.
    """
    if (total := sum(count for _, count in tensors)) != size:
        raise InputError(f"sketch: expected {size} elements, found {total}")
    at = 0
    for flat, count in tensors:
        yield flat, at
        at += count


def layer_groups(layout: Sequence[tuple[str, Sequence[int]]], at_most: int = 4) -> tuple[Group, ...]:
    """Return at most `at_most` groups of neighbouring layers, of about equal numbers of elements.

    Args:
        layout: (name, shape) of each parameter, in the order of the flat vectors. Parameters of one layer, "a.b.weight"
            and "a.b.bias", stay together.
        at_most: number of groups. Default 4.
    """
    total = sum(_elements(shape) for _, shape in layout)
    groups: list[Group] = []
    bounds: list[tuple[int, str]] = []  # share of the vector that the group's layers lie in, its last layer
    at = 0
    for name, shape in layout:
        layer, stop = name.rpartition(".")[0] or name, at + _elements(shape)
        share = (at + stop) * at_most // (2 * total) if total else 0
        if groups and (bounds[-1][1] == layer or bounds[-1][0] == share):
            first = groups[-1].name.partition(" - ")[0]
            groups[-1] = Group(first if first == layer else f"{first} - {layer}", groups[-1].start, stop)
            bounds[-1] = (bounds[-1][0], layer)
        else:
            groups.append(Group(layer, at, stop))
            bounds.append((share, layer))
        at = stop
    return tuple(groups) or (Group("all", 0, 0),)


def _elements(shape: Sequence[int]) -> int:
    count = 1
    for n in shape:
        count *= int(n)
    return count


def _signs(words: NDArray[np.uint64]) -> NDArray[np.float32]:
    return np.where(words >> np.uint64(63), np.float32(-1), np.float32(1))


def _splitmix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return a bijective mix of 64-bit words. Source: Steele, Lea and Flood 2014, SplitMix64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
