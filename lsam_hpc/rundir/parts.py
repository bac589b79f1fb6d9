"""What the ranks of a chain log that each hold a part of its parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from lsam_hpc import rma
from lsam_hpc.errors import InputError
from lsam_hpc.optim.shards import is_sharded, local_parts

if TYPE_CHECKING:
    from mpi4py import MPI

Layout = Sequence[tuple[str, tuple[int, ...]]]


@dataclass
class ChainPart:
    """A rank's part of a chain's parameters."""

    chain: int  # number of the chain
    chains: int  # number of chains
    comm: MPI.Intracomm  # the ranks of the chain, for the exchange thread; the first of them writes the chain's log
    layout: Layout  # (name, shape) of the part of each parameter
    places: list[int]  # where each part begins in the flat vector of the whole parameters

    def renew(self, comm: MPI.Intracomm) -> None:
        """Continue without ranks that were lost, which were none of this chain; collective.

        Args:
            comm: the ranks that are left, in their order.
        """
        self.comm = _split(comm, self.chain)

    @property
    def leads(self) -> bool:
        """Whether this rank writes the chain's log."""
        return self.comm.rank == 0

    def pieces(self, vector: Tensor) -> list[tuple[Tensor, int]]:
        """Return this rank's vector as its part of each parameter and where it begins in the whole vector."""
        sizes = [math.prod(shape) for _, shape in self.layout]
        return list(zip(vector.split(sizes), self.places, strict=True))

    def total(self, sketch: Tensor) -> Tensor | None:
        """Return the sum of a vector over the ranks of the chain on the first of them, None on others; collective."""
        total = np.empty(tuple(sketch.shape), np.float32)
        own = np.ascontiguousarray(sketch.numpy())
        rma.wait_without_spinning(self.comm.Ireduce(own, total), own, total)
        return torch.from_numpy(total) if self.leads else None


def chain_part(model: nn.Module, comm: MPI.Intracomm) -> ChainPart | None:
    """Return this rank's part of its chain, None if a rank holds whole parameters; collective.

    Args:
        model: with the parameters of the chain.
        comm: all ranks, numbered as by torch.distributed.

    Raises:
        InputError: the parameters are not sharded over their first dimension.
    """
    from lsam_hpc.distributed.sharded import shard_ranks

    named = dict(model.named_parameters())
    ranks = shard_ranks(list(named.values()), comm)
    if ranks is None:
        return None
    for name, p in named.items():
        if is_sharded(p) and not p.placements[0].is_shard(0):
            raise InputError(f"{name}: expected a parameter sharded over its first dimension, found {p.placements[0]}")
    firsts = sorted({min(chain) for chain in comm.allgather(ranks)})
    number = firsts.index(min(ranks))
    chain = _split(comm, number)
    shapes = [tuple(part.shape) for part in local_parts(list(named.values()))]
    before = [sum(sizes) for sizes in zip(*chain.allgather([math.prod(s) for s in shapes])[: chain.rank], strict=True)]
    starts = np.cumsum([0, *(p.numel() for p in named.values())])[:-1].tolist()
    places = [start + at for start, at in zip(starts, before or [0] * len(starts), strict=True)]
    return ChainPart(number, len(firsts), chain, list(zip(named, shapes, strict=True)), places)


def _split(comm: MPI.Intracomm, chain: int) -> MPI.Intracomm:
    from mpi4py import MPI

    return MPI.Intracomm(comm.Split(chain, comm.rank))
