"""The plane in which a run's snapshots vary most."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.trajectory import RankLog, Run

WIDTH = 2**16  # number of elements converted to float64 at a time
MIN_RATIO = 1e-6  # second singular value / first, below which the states lie on a line


@dataclass(frozen=True)
class Plane:
    """Two orthogonal directions of length 1, and the states' coordinates along them.

    Args:
        directions: flat, shape (2, P).
        origin: the state with coordinates 0, flat, shape (P,).
        coordinates: of each rank's states, shape (states, 2).
        distances: of each rank's states from the plane, shape (states,).
        rows: each rank's row numbers in the table of snapshots.
        singular_values: all singular values of the centered states, descending.
    """

    directions: NDArray[np.float32]
    origin: NDArray[np.float32]
    coordinates: dict[int, NDArray[np.float64]]
    distances: dict[int, NDArray[np.float64]]
    rows: dict[int, list[int]]
    singular_values: NDArray[np.float64]

    @property
    def explained(self) -> NDArray[np.float64]:
        """Share of the states' variance that each of the two directions explains, shape (2,)."""
        squares = self.singular_values**2
        shares: NDArray[np.float64] = squares[:2] / squares.sum()
        return shares


def plane(run: Run, state: str = "sample", ranks: Sequence[int] | None = None) -> Plane:
    """Return the plane of the first two principal components of the snapshots of all ranks.

    The origin is the last snapshot of the last rank that has any. The components are computed from the K x K inner
    products of the K states. The files are read twice in blocks, so that only three vectors of size P are in memory.

    Args:
        run: with snapshots.
        state: one of `trajectory.schema.STATES`. Default: sample.
        ranks: ranks whose snapshots are used. Default: all.

    Raises:
        InputError: there are fewer than three snapshots, they lie on a line, or one is not finite or damaged.

    Source: Li et al. 2018, "Visualizing the Loss Landscape of Neural Nets", section 7.
    """
    table = f"snapshot/{state}"
    logs = {rank: run.log(rank) for rank in (run.ranks if ranks is None else ranks)}
    rows = {rank: kept for rank, log in logs.items() if table in log.tables and (kept := log.whole(table))}
    count = sum(map(len, rows.values()))
    if count < 3:
        raise InputError(
            f"{run.path}: expected 3 snapshots of the {state} or more to lay a plane through, found {count}: "
            "snapshots are taken while training (lsam train --snapshot-every)"
        )
    if len({tuple(logs[rank].layout) for rank in rows}) > 1:
        raise InputError(f"{run.path}: expected one layout in all ranks' files, found several")
    logs = {rank: logs[rank] for rank in rows}
    gram = np.zeros((count, count))
    for _, block in _blocks(logs, table, rows):
        with np.errstate(invalid="ignore", over="ignore"):  # gram is checked below
            part = block.astype(np.float64)
            part -= part[-1].copy()
            gram += part @ part.T
    if not np.isfinite(gram).all():
        raise InputError(f"{run.path}: expected finite snapshots of the {state}, found {_not_finite(gram, rows)}")
    centered = gram - gram.mean(0) - gram.mean(1)[:, None] + gram.mean()
    squares, vectors = np.linalg.eigh(centered)
    values, weights = np.sqrt(squares[::-1].clip(0)), vectors[:, :-3:-1]
    if values[1] <= MIN_RATIO * values[0]:
        raise InputError(f"{run.path}: expected snapshots of the {state} that span a plane, found all on a line")
    weights = weights / values[:2]
    ends = np.cumsum([len(kept) for kept in rows.values()])[:-1]
    weights *= signs(np.split(gram @ weights, ends))
    directions, origin = (np.empty((n, run.log(next(iter(rows))).size), np.float32) for n in (2, 1))
    for start, block in _blocks(logs, table, rows):
        stop = start + block.shape[1]
        origin[0, start:stop] = block[-1]
        directions[:, start:stop] = weights.T @ block.astype(np.float64)
    # The weights sum to 0, so subtracting the origin or the mean from the states does not change the result.
    coordinates = gram @ weights
    distances = np.sqrt((gram.diagonal() - (coordinates**2).sum(1)).clip(0))
    return Plane(
        directions,
        origin[0],
        dict(zip(rows, np.split(coordinates, ends), strict=True)),
        dict(zip(rows, np.split(distances, ends), strict=True)),
        rows,
        values,
    )


def signs(tracks: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the sign of each direction, 1 or -1, for which the state farthest along it from the first has more of it.

    The sign of a principal component is free. This choice depends on the states only, so that snapshots and sketches
    of a run are drawn the same way round.

    Args:
        tracks: each rank's coordinates, its first state first, shape (states, directions).
    """
    moved = np.concatenate(tracks) - np.mean([track[0] for track in tracks], axis=0)
    farthest = moved[np.abs(moved).argmax(0), np.arange(moved.shape[1])]
    return np.where(farthest < 0, -1.0, 1.0)


def _blocks(
    logs: Mapping[int, RankLog], table: str, rows: Mapping[int, Sequence[int]]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Yield (index of the first element, block of shape (states, elements)) of all states."""
    for parts in zip(*(log.blocks(table, rows[rank]) for rank, log in logs.items()), strict=True):
        start, block = parts[0][0], np.concatenate([part for _, part in parts])
        for at in range(0, block.shape[1], WIDTH):
            yield start + at, block[:, at : at + WIDTH]


def _not_finite(gram: NDArray[np.float64], rows: Mapping[int, Sequence[int]]) -> str:
    states = [(rank, row) for rank, kept in rows.items() for row in kept]
    rank, row = states[int(np.flatnonzero(~np.isfinite(gram.diagonal()))[-1])]
    return f"row {row} of rank {rank}"
