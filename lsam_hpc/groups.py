"""Ranks that are one synchronous sampler together: averaged gradients, one exchange for all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor, distributed

from lsam_hpc import rma
from lsam_hpc.errors import InputError
from lsam_hpc.exchange import array
from lsam_hpc.linkoptions import GroupAscent
from lsam_hpc.optim.center import Center
from lsam_hpc.optim.flat import FlatVector


class Group:
    """Ranks with the same sample, which average their gradients: G neighbours, or those that are named.

    Args:
        comm: all ranks; collective.
        size: G; it divides the number of ranks.
        ascent: `"own"`: each rank climbs its own mini-batch's gradient (m-SAM); `"averaged"`: all climb the mean.
        reduce: sums a vector over the group's ranks, in place. Default: torch.distributed if it is initialized, else
            Horovod if it is, else MPI.
        ranks: of this group, this rank among them; the groups part all ranks. Default: neighbours.
        average: averages gradients in place of `reduce`. Default: none.

    Raises:
        InputError: the groups do not part the ranks.

    Source: m-sharpness: Foret et al. 2021 (arXiv 2010.01412), section 4.1.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        size: int,
        ascent: GroupAscent,
        reduce: Callable[[Tensor], None] | None = None,
        ranks: Sequence[int] | None = None,
        average: Callable[[list[Tensor]], None] | None = None,
    ) -> None:
        first = comm.rank // size * size if ranks is None else min(ranks)
        groups = comm.allgather((first, None if ranks is None else sorted(ranks)))
        firsts = sorted({found for found, _ in groups})
        for rank, (found, named) in enumerate(groups):
            if named is not None and named != [r for r, (other, _) in enumerate(groups) if other == found]:
                raise InputError(f"group: expected sets that part the ranks, found {named} on rank {rank}", True)
        self.comm = comm.Split(first, comm.rank)
        self.link = self.comm.Dup()  # the exchange thread's
        self.ascent = ascent == "averaged"
        self.index, self.chains = firsts.index(first), len(firsts)
        self._average = average
        if average is None:
            self._reduce = reduce or _backend(comm, size) or self._sum
        self._vector: FlatVector | None = None

    @property
    def leads(self) -> bool:
        """Whether this rank exchanges for the group."""
        return self.comm.rank == 0

    def __call__(self, parameters: list[Tensor]) -> None:
        """Replace the gradients by their mean over the group; a parameter without one counts as zero, if any has one.

        Args:
            parameters: the same on every rank of the group.
        """
        if self._average is not None:
            self._average(parameters)
            return
        if self._vector is None:
            # After the gradients: how many ranks have one, for each parameter.
            flags = torch.empty(len(parameters), device=parameters[0].device)
            self._vector = FlatVector([*parameters, flags])
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        there = torch.tensor([float(p.grad is not None) for p in parameters])
        vector = self._vector.gather([*grads, there.to(grads[0].device)])
        self._reduce(vector)
        present = self._vector.views[-1].tolist()
        vector.div_(self.comm.size)
        for p, grad, mean, count in zip(parameters, grads, self._vector.views, present, strict=False):
            if count:
                p.grad = grad.copy_(mean)

    def draw(self, ticket: Callable[[], int]) -> int:
        """Return what the leader draws; collective."""
        found = np.array([ticket() if self.leads else 0], np.int64)
        rma.wait(self.comm.Ibcast(found))
        return int(found[0])

    def close(self) -> None:
        """Free the communicators; collective."""
        self.link.Free()
        self.comm.Free()

    def _sum(self, vector: Tensor) -> None:
        host = vector.cpu()
        rma.wait(self.comm.Iallreduce(MPI.IN_PLACE, array(host)))
        if host is not vector:
            vector.copy_(host)


class GroupCenter:
    """A group's center: its leader reads and adds, and the others learn what came of it.

    All ranks of the group do the same exchange with the same sample, the leader's, so they come to the same result.

    Args:
        center: of the leaders; any rank may `look`.
        group: whose `link` only exchanges use.
    """

    def __init__(self, center: Center, group: Group) -> None:
        self._center = center
        self._group = group
        self.shares = center.shares

    @property
    def size(self) -> int:
        """Number of elements."""
        return self._center.size

    @property
    def version(self) -> int:
        """Number of adds so far."""
        return self._center.version

    @property
    def nbytes(self) -> int:
        """Bytes that one read or one add of the leader moves."""
        return self._center.nbytes if self._group.leads else 0

    def turn(self) -> AbstractContextManager[None]:
        """Return the context in which an exchange runs."""
        return self._center.turn()

    def meet(self, sample: Tensor, pull: float) -> None:
        """Make `sample` the leader's: BatchNorm statistics differ within a group."""
        self._pass_on(sample)
        if self._group.leads:
            self._center.meet(sample, pull)

    def read(self, out: Tensor) -> int:
        """Copy y, as the leader sees it, into `out`, shape (P,), and return its version."""
        version = self._group_version(lambda: self._center.read(out))
        self._pass_on(out)
        return version

    def look(self, out: Tensor) -> None:
        """Copy y into `out`, shape (P,), without the group."""
        self._center.look(out)

    def add(self, delta: Tensor) -> int:
        """Add `delta`, shape (P,), once, and return the version before."""
        return self._group_version(lambda: self._center.add(delta))

    def share(self, state: Tensor) -> None:
        """Publish the leader's state."""
        if self._group.leads:
            self._center.share(state)

    def _pass_on(self, vector: Tensor) -> None:
        rma.wait(self._group.link.Ibcast(array(vector)))

    def _group_version(self, act: Callable[[], int]) -> int:
        version = np.array([act() if self._group.leads else 0], np.int64)
        rma.wait(self._group.link.Ibcast(version))
        return int(version[0])


def _backend(comm: MPI.Intracomm, size: int) -> Callable[[Tensor], None] | None:
    """Return the sum over a group of whatever library the ranks have started for this; collective."""
    groups = [list(range(first, first + size)) for first in range(0, comm.size, size)]
    if distributed.is_available() and distributed.is_initialized():
        if distributed.get_world_size() != comm.size or distributed.get_rank() != comm.rank:
            raise InputError(
                f"torch.distributed: expected the ranks of MPI, found rank {distributed.get_rank()} of "
                f"{distributed.get_world_size()} where MPI has rank {comm.rank} of {comm.size}"
            )
        mine = [distributed.new_group(ranks) for ranks in groups][comm.rank // size]
        return lambda vector: distributed.all_reduce(vector, group=mine)
    hvd = sys.modules.get("horovod.torch")
    if hvd is None or not hvd.is_initialized():
        return None
    sets = [hvd.global_process_set] if size == comm.size else [hvd.add_process_set(ranks) for ranks in groups]
    ours = sets[comm.rank // size]
    return lambda vector: hvd.allreduce_(vector, name="lsam.group", op=hvd.Sum, process_set=ours)
