"""The saved state of a chain: a tensor for each parameter, so that torch.distributed.checkpoint can reshard it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lsam_hpc.errors import InputError
from lsam_hpc.optim.delta_filter import WINDOW
from lsam_hpc.optim.shards import any_sharded, local_parts, with_parts
from lsam_hpc.optim.state import split

# Key in a saved state -> attribute of the optimizer.
COUNTS = {
    "_claimed": "_claimed",
    "exchanges": "exchanges",
    "refused": "rejected",
    "staleness_sum": "staleness_sum",
    "staleness_max": "staleness_max",
    "blocked": "blocked",
    "center_distance": "center_distance",
    "_since_exchange": "_since_exchange",
}
VECTORS = ("sample", "anchor", "velocity")


class ChainState:
    """Converts a chain's vectors to a tensor for each parameter and statistic, by its number, and back.

    Of DTensors the vectors hold this rank's parts, and the tensors are DTensors.

    Args:
        params: the chain's parameters.
        statistics: the tensors that follow the parameters in the vectors.
    """

    def __init__(self, params: Sequence[Tensor], statistics: Sequence[Tensor]) -> None:
        self._tensors = [*params, *statistics]
        self.sharded = any_sharded(params)

    def pieces(self, vector: Tensor) -> dict[int, Tensor]:
        """Return a vector as one tensor for each parameter and statistic; plain ones share its memory."""
        parts = local_parts(self._tensors)
        views = [piece.view(p.shape) for piece, p in zip(vector.split([p.numel() for p in parts]), parts, strict=True)]
        if self.sharded:
            # Copies: torch.save fails on DTensors that share memory.
            views = with_parts([v.to(p.device, copy=True) for v, p in zip(views, parts, strict=True)], self._tensors)
        return dict(enumerate(views))

    def vector(self, pieces: Mapping[int, Tensor]) -> Tensor:
        """Return a vector in host memory, given what `pieces` returned.

        Raises:
            InputError: they are those of other parameters.
        """
        parts = local_parts([pieces[i] for i in sorted(pieces)])
        own, saved = ([tuple(t.shape) for t in tensors] for tensors in (local_parts(self._tensors), parts))
        if saved != own:
            size, other = (sum(map(math.prod, shapes)) for shapes in (own, saved))
            raise InputError(f"state_dict: expected the state of a chain of {size} elements, found {other} elements")
        return torch.cat([part.reshape(-1).cpu() for part in parts])

    def packed(self, state: dict[str, Any]) -> dict[str, Any]:
        """Return the state of a coupler in the form that is saved."""
        vectors = {name: None if state[name] is None else self.pieces(state[name]) for name in VECTORS}
        # Of fixed length: a new optimizer's state, into which torch.distributed.checkpoint loads, has its shape.
        guard = torch.full((WINDOW,), math.nan, dtype=torch.float64)
        guard[: len(state["guard"])] = torch.tensor(state["guard"], dtype=torch.float64)
        return {**state, **vectors, "guard": guard}

    def unpacked(self, saved: dict[str, Any] | None, *, velocity: bool) -> dict[str, Any]:
        """Return the state of a coupler, given the form that is saved.

        Args:
            saved: what `packed` returned. None: the state has none.
            velocity: the chain has a center momentum.

        Raises:
            InputError: it is not the state of such a chain.
        """
        size = sum(part.numel() for part in local_parts(self._tensors))
        if saved is None or (saved["velocity"] is not None) != velocity:
            other = "none" if saved is None else "one of another center_momentum"
            raise InputError(f"state_dict: expected the state of a chain of {size} elements, found {other}")
        vectors = {name: None if saved[name] is None else self.vector(saved[name]) for name in VECTORS}
        return {**saved, **vectors, "guard": [norm for norm in saved["guard"].tolist() if not math.isnan(norm)]}


def add_to_group(state: dict[str, Any], parts: dict[str, Any]) -> None:
    """Add parts to a SAM's state, also where torch.distributed.checkpoint keeps them: in the first group."""
    state.update(parts)
    state["param_groups"][0]["sam"].update(parts)


def with_group(state: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return a SAM's state with the named parts, which one from torch.distributed.checkpoint has in its first group.

    It then has one noise generator for all ranks, which those of a sharded chain cannot all use: they get none.
    """
    if all(name in state for name in names):
        return state
    sam = split(state)[1] if "param_groups" in state else None
    shared = {name: part for name, part in (sam or {}).items() if name in names}
    if "lsam" in shared and any_sharded(shared["lsam"]["sample"].values()):
        shared["lsam"] = {**shared["lsam"], "generator": None}
    return {**state, **shared}


def counts_of(chain: object) -> dict[str, Any]:
    """Return a chain's counts for its saved state."""
    return {key: getattr(chain, name) for key, name in COUNTS.items()}


def set_counts(chain: object, saved: dict[str, Any]) -> None:
    """Set a chain's counts to saved ones."""
    for key, name in COUNTS.items():
        setattr(chain, name, saved[key])
