"""Groups of ranks that form one synchronous chain: averaged gradients, one exchange per group."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch
from mpi4py import MPI
from torch import Tensor, distributed

from lsam_hpc import rma
from lsam_hpc.distributed.chains import ChainRanks
from lsam_hpc.distributed.exchange import array
from lsam_hpc.errors import InputError
from lsam_hpc.optim.center import Center
from lsam_hpc.optim.flat import FlatVector
from lsam_hpc.optim.shards import local_parts
from lsam_hpc.options.communication import GroupAscent


class Group(ChainRanks):
    """Ranks with the same sample that average their gradients: G consecutive ranks, or those given by `ranks`.

    Args:
        comm: all ranks; collective.
        size: number of ranks per group, G; must divide the number of ranks.
        ascent: `"own"`: each rank ascends its own mini-batch's gradient (m-SAM); `"averaged"`: all ascend the mean.
        reduce: sums a vector over the group's ranks, in place. Default: torch.distributed if initialized, else Horovod
            if initialized, else MPI.
        ranks: the ranks of this rank's group; the groups must partition all ranks. Default: consecutive ranks.
        average: replaces the gradients of parameters by their mean over the group, instead of `reduce`. Default: none.

    Attributes:
        ranks: the ranks of this rank's group in `comm`.
        can_shrink: whether MPI averages, so that the group can continue without a rank that is lost.

    Raises:
        InputError: the groups are no partition of the ranks, or torch.distributed numbers the ranks differently.

    Source: m-sharpness: Foret et al. 2021 (arXiv 2010.01412), section 4.1.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        size: int,
        ascent: GroupAscent,
        *,
        reduce: Callable[[Tensor], None] | None = None,
        ranks: Sequence[int] | None = None,
        average: Callable[[list[Tensor]], None] | None = None,
    ) -> None:
        first = comm.rank // size * size
        super().__init__(comm, range(first, first + size) if ranks is None else sorted(ranks), "group_ranks")
        self.ascent = ascent == "averaged"
        self._average = average
        self._process_group: distributed.ProcessGroup | None = None
        foreign = None if average is not None else reduce or self._backend(comm)
        self.can_shrink = average is None and foreign is None
        self._reduce = foreign or self._sum
        self._vector: FlatVector | None = None

    def again(self, comm: MPI.Intracomm, ranks: Sequence[int]) -> Group:
        """Return the same group among the ranks that are left, see `ChainRanks.again`; MPI averages in it."""
        return Group(comm, len(ranks), "averaged" if self.ascent else "own", ranks=ranks)

    def center(self, center: Center) -> Center:
        """Return the center of the group, whose leader exchanges for all."""
        return GroupCenter(center, self)

    def __call__(self, parameters: list[Tensor]) -> None:
        """Replace the gradients, or of sharded ones this rank's parts, by their mean over the group.

        A missing gradient counts as zero if another rank has one for the parameter; if none has, it stays missing.

        Args:
            parameters: the same on every rank of the group.
        """
        if self._average is not None:
            self._average(parameters)
            return
        if self.comm.size == 1:
            return
        if self._vector is None:
            # Last part of the vector: the number of ranks that have a gradient, for each parameter.
            flags = torch.empty(len(parameters), device=parameters[0].device)
            self._vector = FlatVector([*local_parts(parameters), flags])
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        has_grad = torch.tensor([float(p.grad is not None) for p in parameters])
        parts = local_parts(grads)
        vector = self._vector.gather([*parts, has_grad.to(parts[0].device)])
        self._reduce(vector)
        counts = self._vector.views[-1].tolist()
        vector.div_(self.comm.size)
        for p, grad, part, mean, count in zip(parameters, grads, parts, self._vector.views, counts, strict=False):
            if count:
                part.copy_(mean)
                p.grad = grad

    def forget(self) -> None:
        """Free the memory that averaging keeps, which the next call allocates again."""
        self._vector = None

    def close(self) -> None:
        """Free the communicators; collective."""
        if self._process_group is not None and distributed.is_initialized():
            distributed.destroy_process_group(self._process_group)
        super().close()

    def _backend(self, comm: MPI.Intracomm) -> Callable[[Tensor], None] | None:
        """Return the sum over the group by torch.distributed or Horovod, whichever is initialized, or None; collective.

        Args:
            comm: all ranks.
        """
        if distributed.is_available() and distributed.is_initialized():
            if distributed.get_world_size() != comm.size or distributed.get_rank() != comm.rank:
                raise InputError(
                    f"torch.distributed: expected the ranks of MPI, found rank {distributed.get_rank()} of "
                    f"{distributed.get_world_size()} where MPI has rank {comm.rank} of {comm.size}"
                )
            mine = [distributed.new_group(ranks) for ranks in self.partition][self.index]
            self._process_group = mine
            return lambda vector: distributed.all_reduce(vector, group=mine)
        hvd = sys.modules.get("horovod.torch")
        if hvd is None or not hvd.is_initialized():
            return None
        groups = self.partition
        sets = [hvd.global_process_set] if len(groups) == 1 else [hvd.add_process_set(ranks) for ranks in groups]
        process_set = sets[self.index]
        return lambda vector: hvd.allreduce_(vector, name="lsam.group", op=hvd.Sum, process_set=process_set)

    def _sum(self, vector: Tensor) -> None:
        host = vector.cpu()
        rma.wait_without_spinning(self.comm.Iallreduce(MPI.IN_PLACE, array(host)), host)
        if host is not vector:
            vector.copy_(host)


class GroupCenter:
    """The center as seen by a group: its leader reads and adds, and broadcasts the results to the group.

    All ranks of the group do the same exchange with the leader's sample, so they get the same result.

    Args:
        center: the leaders' center; any rank may call its `peek`.
        group: the group; only this class uses its `link`.
    """

    def __init__(self, center: Center, group: Group) -> None:
        self._center = center
        self.group = group
        self.publishes = center.publishes

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
        """Bytes that one read or one add moves; 0 on ranks that are not the leader."""
        return self._center.nbytes if self.group.leads else 0

    def exclusive_turn(self) -> AbstractContextManager[None]:
        """Return the context in which an exchange runs."""
        return self._center.exclusive_turn()

    def begin_exchange(self, sample: Tensor, pull: float) -> None:
        """Replace `sample` by the leader's: BatchNorm statistics differ within a group."""
        self._broadcast(sample)
        if self.group.leads:
            self._center.begin_exchange(sample, pull)

    def read(self, out: Tensor) -> int:
        """Copy y, as read by the leader, into `out`, shape (P,), and return its version."""
        version = self._group_version(lambda: self._center.read(out))
        self._broadcast(out)
        return version

    def peek(self, out: Tensor) -> None:
        """Copy y into `out`, shape (P,); not collective."""
        self._center.peek(out)

    def add(self, delta: Tensor) -> int:
        """Add `delta`, shape (P,), once for the group and return the version before it."""
        return self._group_version(lambda: self._center.add(delta))

    def publish(self, state: Tensor) -> None:
        """Publish the leader's state."""
        if self.group.leads:
            self._center.publish(state)

    def _broadcast(self, vector: Tensor) -> None:
        rma.wait_without_spinning(self.group.link.Ibcast(array(vector)), vector)

    def _group_version(self, act: Callable[[], int]) -> int:
        version = np.array([act() if self.group.leads else 0], np.int64)
        rma.wait_without_spinning(self.group.link.Ibcast(version), version)
        return int(version[0])
