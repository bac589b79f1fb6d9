"""Chains whose ranks each hold a shard of the model, as `fully_shard` (FSDP2) makes them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray
from torch import Tensor, distributed

from lsam_hpc import rma
from lsam_hpc.distributed.chains import ChainRanks
from lsam_hpc.errors import InputError, RankLostError
from lsam_hpc.optim.shards import any_sharded, is_sharded
from lsam_hpc.options.communication import CommunicationOptions
from lsam_hpc.rma import faults

MESH = "model's device mesh"


class ShardedChain(ChainRanks):
    """The ranks that hold the shards of one chain; each exchanges its shard with the same shard of other chains.

    No rank gathers the model. Gradients are averaged by `fully_shard`.

    Args:
        comm: all ranks; collective.
        ranks: the ranks of this rank's chain, in the order of their shards.

    Raises:
        InputError: the chains do not partition the ranks.
    """

    def __init__(self, comm: MPI.Intracomm, ranks: Sequence[int]) -> None:
        super().__init__(comm, ranks, MESH)
        self._holders = holders_of(comm, ranks)
        self._in_world = frozenset(faults.numbers_in_world(self.comm))

    @property
    def holders(self) -> MPI.Intracomm:
        """The ranks that hold the same shard, in the order of their chains."""
        return self._holders

    @property
    def lost(self) -> bool:
        """True if a rank of the chain has failed."""
        return not faults.watch().failed.isdisjoint(self._in_world)

    def draw(self, number: Callable[[], int]) -> int:
        """Call `number` on the leader, see `ChainRanks.draw`; if it fails there, raise on all ranks of the chain.

        The others do not give up before the leader does: it would wait for them in the next pass for ever.
        """
        value = np.zeros(2, np.int64)  # the result, and whether there is one
        if self.leads and not faults.watch().lost:
            with suppress(RankLostError):
                value[:] = number(), 1
        rma.wait_without_spinning(self.comm.Ibcast(value), value, lost=lambda: self.lost)
        if not value[1]:
            raise RankLostError("a rank has failed that others wait for")
        return int(value[0])

    def all_done(self, *, done: bool) -> bool:
        """Return whether a call was done on all ranks of the chain; collective in it."""
        value = np.array([done], np.int64)
        rma.wait_without_spinning(self.comm.Iallreduce(MPI.IN_PLACE, value, MPI.MIN), value, lost=lambda: self.lost)
        return bool(value[0])

    def holders_in(self, comm: MPI.Intracomm) -> MPI.Intracomm:
        """Return those of the ranks that are left which hold the same shard, see `ChainRanks.holders_in`."""
        return MPI.Intracomm(comm.Split(self.comm.rank, comm.rank))

    def again(self, comm: MPI.Intracomm, ranks: Sequence[int]) -> ShardedChain:
        """Return the same chain among the ranks that are left, see `ChainRanks.again`."""
        return ShardedChain(comm, ranks)

    def whole_norms(self, norms: list[float]) -> list[float]:
        """Return the norms of the chain's vectors, given those of this rank's shards; for the exchange thread.

        All ranks of the chain get the same bits, since each adds the same numbers in the same order.
        """
        own, parts = np.array(norms), np.empty((self.link.size, len(norms)))
        rma.wait_without_spinning(self.link.Iallgather(own, parts), own, parts)
        return [math.hypot(*column) for column in parts.T.tolist()]

    def close(self) -> None:
        """Free the communicators; collective."""
        self._holders.Free()
        super().close()


def shard_ranks(params: Sequence[Tensor], comm: MPI.Intracomm) -> list[int] | None:
    """Return the ranks that hold the shards of this rank's chain, in their order; None if the parameters are whole.

    Args:
        params: the chain's parameters.
        comm: all ranks, numbered as by torch.distributed.

    Raises:
        InputError: some parameters are whole, or are sharded otherwise than over one dimension of one mesh.
    """
    if not any_sharded(params):
        return None
    whole = sum(not is_sharded(p) for p in params)
    if whole:
        raise InputError(f"model: expected fully_shard on the whole model, found {whole} of {len(params)} unsharded")
    meshes = {p.device_mesh for p in params if is_sharded(p)}
    mesh = meshes.pop()
    if meshes or mesh.ndim != 1 or not all(p.placements[0].is_shard() for p in params if is_sharded(p)):
        raise InputError(f"{MESH}: expected one dimension, over which all parameters are sharded, found {mesh}")
    if distributed.get_world_size() != comm.size or distributed.get_rank() != comm.rank:
        raise InputError(
            f"torch.distributed: expected the ranks of MPI, found rank {distributed.get_rank()} of "
            f"{distributed.get_world_size()} where MPI has rank {comm.rank} of {comm.size}"
        )
    return [int(rank) for rank in mesh.mesh.tolist()]


def check_sharded(options: CommunicationOptions, ranks: Sequence[int], others: Mapping[str, object]) -> None:
    """Raise InputError for the first argument of LSAM that sharded chains exclude.

    Args:
        options: of the communication.
        ranks: of this rank's chain.
        others: further arguments by name, which must be None or 0.
    """
    if options.group_size not in (1, len(ranks)):
        raise InputError(
            f"group_size: expected {len(ranks)}, the ranks of the {MESH}, or 1, found {options.group_size}"
        )
    for name, required in (("topology", "center"), ("publish", "none")):
        if (value := getattr(options, name)) != required:
            raise InputError(f"{name}: expected {required} with sharded parameters, found {value}")
    for name, value in others.items():
        if value:
            raise InputError(f"{name}: expected none with sharded parameters, found {value}")


def holders_of(comm: MPI.Intracomm, ranks: Sequence[int]) -> MPI.Intracomm:
    """Return the ranks that hold the same shard as this one, in the order of their chains; collective."""
    return MPI.Intracomm(comm.Split(list(ranks).index(comm.rank), min(ranks)))


def copy_first(comm: MPI.Intracomm, ranks: Sequence[int] | None, start: NDArray[np.generic]) -> None:
    """Overwrite a vector on each rank by that of the first chain; collective.

    Args:
        comm: all ranks.
        ranks: of this rank's chain, each of which has a part of the vector. None: rank 0 has the whole vector.
        start: the vector.
    """
    holders = comm if ranks is None else holders_of(comm, ranks)
    holders.Bcast(start)
    if ranks is not None:
        holders.Free()
