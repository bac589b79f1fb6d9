"""Sketches by torch on any device (`trajectory.CountSketch` uses numpy), and the callback that logs states."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

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
        self._sums.zero_()
        for flat, at in parts(self.sketch.size, [(tensor.reshape(-1), tensor.numel()) for tensor in tensors]):
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


class StateLog:
    """Logs sketches and snapshots of a chain and its center at exchanges: a `StateCallback`.

    Args:
        writer: writer of the log, with the sketch map and the snapshots.
        every: local steps between sketches, which are taken at the first exchange at or after each multiple. Default 1:
            at every exchange.
        last: step of the last logged exchange of a resumed run. Default -1: none.
    """

    def __init__(self, writer: TrajectoryWriter, every: int = 1, last: int = -1) -> None:
        self.whole = False  # True: log the next states in full, due or not
        self._writer = writer
        self._every = every
        self._sketch = DeviceSketch(writer.sketcher, "cpu") if writer.sketcher else None
        self._last = last  # step of the last exchange

    def wants(self, state: str, step: int) -> bool:
        """Return True if a state is due at an exchange; see `optim.callback.StateCallback`."""
        return any(self._due(kind, state, step) for kind in ("sketch", "snapshot"))

    def on_states(self, step: int, version: int, states: Mapping[str, Tensor]) -> None:
        """Log the states that are due.

        Args:
            step: local steps done when the sample was staged.
            version: version of the center that was read.
            states: flat vectors in host memory, shape (P,), by the names of `schema.STATES`.
        """
        for state, vector in states.items():
            flat = vector.float()
            if self._sketch and self._due("sketch", state, step):
                self._writer.sketch(state, self._sketch(flat).numpy(), step, version)
            if self._due("snapshot", state, step):
                self._writer.snapshot(state, flat.numpy(), step, version)
        self._last = step

    def _due(self, kind: str, state: str, step: int) -> bool:
        if f"{kind}/{state}" not in self._writer.tables:
            return False
        if kind == "snapshot":
            snapshots = self._writer.snapshots
            return self.whole or (snapshots is not None and snapshots.due(step, self._last))
        return self._last < 0 or step // self._every > self._last // self._every or self.whole
