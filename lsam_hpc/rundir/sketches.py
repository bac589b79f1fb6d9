"""Sketches by torch on any device (`trajectory.CountSketch` uses numpy), and the callback that logs states."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from lsam_hpc.rundir.parts import ChainPart
from lsam_hpc.trajectory import TrajectoryWriter
from lsam_hpc.trajectory.sketch import CountSketch, Piece, parts


class DeviceSketch:
    """A CountSketch of tensors in one pass over them, without a copy to the host.

    Args:
        sketch: the sketch map.
        device: device of the tensors.
    """

    def __init__(self, sketch: CountSketch, device: torch.device | str) -> None:
        self.sketch = sketch
        self._signs = torch.from_numpy(sketch.signs).to(device)
        self._bucket_signs = torch.from_numpy(sketch.bucket_signs).to(device)
        self._permutation = torch.from_numpy(sketch.permutation).to(device)
        self._sums = torch.zeros(len(sketch.groups), sketch.width, device=device)
        self._pieces: dict[tuple[int, int], list[Piece]] = {}

    @torch.no_grad()
    def __call__(self, *tensors: Tensor) -> Tensor:
        """Return the sketch, shape (groups, buckets), of a flat vector or of its parts in order.

        Raises:
            InputError: their total size is not the map's.
        """
        return self.of_pieces(parts(self.sketch.size, [(tensor.reshape(-1), tensor.numel()) for tensor in tensors]))

    @torch.no_grad()
    def of_pieces(self, pieces: Iterable[tuple[Tensor, int]]) -> Tensor:
        """Return the sketch, shape (groups, buckets), of a vector that is 0 outside some pieces.

        Args:
            pieces: pairs of a flat tensor and its first element in the vector.
        """
        self._sums.zero_()
        for flat, at in pieces:
            for piece in self._pieces_of(at, at + flat.numel()):
                run = flat[piece.start - at : piece.stop - at]
                count = piece.stop - piece.start
                signs = self._signs[piece.offset : piece.offset + count]
                into = self._sums[piece.group, piece.bucket : piece.bucket + count]
                into.addcmul_(run, signs, value=-1 if piece.negative else 1)
        mixed = self._sums.index_select(1, self._permutation).view(-1, *self._bucket_signs.shape)
        return torch.einsum("gbk,bk->gb", mixed, self._bucket_signs)

    def _pieces_of(self, start: int, stop: int) -> list[Piece]:
        if (start, stop) not in self._pieces:
            self._pieces[start, stop] = list(self.sketch.pieces(start, stop))
        return self._pieces[start, stop]


class SketchLog:
    """Logs sketches of a chain's states.

    Args:
        writer: writer of the chain's log; None on ranks of a sharded chain that do not lead it.
        sketch: the sketch map of the whole flat vectors.
        states: that are sketched, of `schema.STATES`.
        part: this rank's part of the vectors. Default: the whole.
    """

    def __init__(
        self, writer: TrajectoryWriter | None, sketch: CountSketch, states: Sequence[str], part: ChainPart | None = None
    ) -> None:
        self.states = states
        self._writer, self._part = writer, part
        self._sketch = DeviceSketch(sketch, "cpu")

    def log(self, state: str, vector: Tensor, step: int, version: int) -> None:
        """Log the sketch of a state; collective in a sharded chain, whose sketch is the sum of those of its ranks."""
        sketch: Tensor | None = None
        if self._part is None:
            sketch = self._sketch(vector)
        else:
            sketch = self._part.total(self._sketch.of_pieces(self._part.pieces(vector)))
        if self._writer is not None and sketch is not None:
            self._writer.sketch(state, sketch.numpy(), step, version)


class StateLog:
    """Logs sketches and snapshots of a chain and its center at exchanges: a `StateCallback`.

    Args:
        sketches: logs the sketches; None: no sketches.
        snapshots: writer of the snapshots, which has tables of those that are wanted; None: no snapshots.
        every: local steps between sketches, which are taken at the first exchange at or after each multiple. Default 1:
            at every exchange.
        last: step of the last logged exchange of a resumed run. Default -1: none.
    """

    def __init__(
        self, sketches: SketchLog | None, snapshots: TrajectoryWriter | None, every: int = 1, last: int = -1
    ) -> None:
        self.whole = False  # True: log the next states in full, due or not
        self._sketches, self._snapshots = sketches, snapshots
        self._every = every
        self._last = last  # step of the last exchange

    def wants(self, state: str, step: int) -> bool:
        """Return True if a state is due at an exchange; see `optim.callback.StateCallback`."""
        return self._sketch_due(state, step) or self._snapshot_due(state, step)

    def on_states(self, step: int, version: int, states: Mapping[str, Tensor]) -> None:
        """Log the states that are due.

        Args:
            step: local steps done when the sample was staged.
            version: version of the center that was read.
            states: flat vectors in host memory, shape (P,), by the names of `schema.STATES`; of a rank's part of a
                sharded chain, this part of them.
        """
        for state, vector in states.items():
            flat = vector.float()
            if self._sketches is not None and self._sketch_due(state, step):
                self._sketches.log(state, flat, step, version)
            if self._snapshots is not None and self._snapshot_due(state, step):
                self._snapshots.snapshot(state, flat.numpy(), step, version)
        self._last = step

    def _sketch_due(self, state: str, step: int) -> bool:
        if self._sketches is None or state not in self._sketches.states:
            return False
        return self._last < 0 or step // self._every > self._last // self._every or self.whole

    def _snapshot_due(self, state: str, step: int) -> bool:
        if self._snapshots is None or f"snapshot/{state}" not in self._snapshots.tables:
            return False
        snapshots = self._snapshots.snapshots
        return self.whole or (snapshots is not None and snapshots.due(step, self._last))
