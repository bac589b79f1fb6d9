"""A rank's connections to the other ranks: windows, peer table, group and helper threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from mpi4py import MPI
from numpy.typing import NDArray

from lsam_hpc import rma
from lsam_hpc.distributed.exchange import RmaCenter, ThreadExecutor
from lsam_hpc.distributed.groups import Group, GroupCenter
from lsam_hpc.distributed.topology import GossipCenter, LeaderCenter
from lsam_hpc.optim.center import Center
from lsam_hpc.optim.executor import Executor, InlineExecutor
from lsam_hpc.options.communication import CommunicationOptions
from lsam_hpc.util.log import get_logger

_LOG = get_logger(__name__)


class Communication:
    """A rank's windows and threads; making and closing them is collective.

    Args:
        comm: communicator of all ranks.
        start: the center's start, shape (P,), the same on every rank.
        options: checked by `check_communication`.
        seed: seed of the random graph.
        max_delta_ratio: of the filter on states read by gossip.
        group_reduce: as of `LSAM`.
        group_ranks: as of `LSAM`.
        group_average: as of `LSAM`.
    """

    def __init__(
        self,
        comm: MPI.Intracomm,
        start: NDArray[Any],
        options: CommunicationOptions,
        *,
        seed: int,
        max_delta_ratio: float,
        group_reduce: Callable[[torch.Tensor], None] | None = None,
        group_ranks: Sequence[int] | None = None,
        group_average: Callable[[list[torch.Tensor]], None] | None = None,
    ) -> None:
        lockstep = options.mode == "lockstep"
        self.comm = comm
        self.failed_ranks: list[int] = []
        self._patience = options.heartbeat_timeout
        self._reported: set[int] = set()
        self._closing = threading.Event()
        self._watcher: threading.Thread | None = None
        topology, publish = options.topology, options.publish
        if topology != "center" and publish == "none":
            publish = "sample"
        self.perturbed = publish == "perturbed"
        multiple = MPI.Query_thread() == MPI.THREAD_MULTIPLE
        needed = rma.why_progress_needed(comm)
        if not multiple and comm.rank == 0 and (needed or (options.overlap and not lockstep)):
            _LOG.warning(
                "MPI runs without MPI_THREAD_MULTIPLE: exchanges are not overlapped, and ranks wait for each other%s",
                f" ({needed})" if needed else "",
            )
        # The half-precision center has its own helper thread.
        helped = not needed or not multiple or options.wire_dtype != "float32"
        self._progress = None if helped else rma.ProgressThread(comm)
        self.peers = rma.PeerTable(comm, start.size if publish != "none" else 0, start.dtype.name)
        if publish != "none":
            self.peers.publish(start)
        self.counter = rma.Counter(comm)
        self.group = (
            Group(
                comm,
                options.group_size,
                options.group_ascent,
                reduce=group_reduce,
                ranks=group_ranks,
                average=group_average,
            )
            if options.group_size > 1 or group_ranks is not None
            else None
        )
        self.windows: rma.Center | rma.HalfPrecisionCenter | None = None
        self.center: Center
        if topology == "center":
            wire = options.wire_dtype
            self.windows = (
                rma.Center(comm, start.size, start.dtype.name, start)
                if wire == "float32"
                else rma.HalfPrecisionCenter(comm, start.size, wire, start)
            )
            self.center = RmaCenter(self.windows, lockstep=lockstep, peers=self.peers if publish != "none" else None)
        elif topology == "gossip":
            self.center = GossipCenter(
                self.peers,
                lambda: self._reported,
                torch.from_numpy(start),
                options.graph,
                options.degree,
                max_delta_ratio=max_delta_ratio,
                seed=seed,
            )
        else:
            self.center = LeaderCenter(self.peers, lambda: self._reported)
        if self.group is not None:
            self.center = GroupCenter(self.center, self.group)
        self._background = ThreadExecutor(self._stalled) if options.overlap and multiple and not lockstep else None
        self.executor: Executor = self._background or InlineExecutor()
        if multiple:
            self._watcher = threading.Thread(target=self._watch, name="lsam-watch", daemon=True)
            self._watcher.start()

    @property
    def unresponsive_ranks(self) -> list[int]:
        """The ranks without a heartbeat, as of the last `report_heartbeats`."""
        return sorted(self._reported)

    def report_heartbeats(self) -> None:
        """Log each rank whose heartbeat has stopped or returned, once; the lowest responsive rank writes it."""
        unresponsive = set(self.peers.unresponsive(self._patience))
        writes = min(set(range(self.comm.size)) - unresponsive | {self.comm.rank}) == self.comm.rank
        for rank in sorted(unresponsive ^ self._reported):
            if writes:
                news = f"sent no heartbeat for {self._patience:g} s" if rank in unresponsive else "responds again"
                _LOG.warning("rank %d (%s) %s", rank, self.peers.names[rank], news)
        self._reported = unresponsive

    def rendezvous(self, results: Sequence[float]) -> NDArray[Any]:
        """Wait until every other rank has called this as often or has failed; return all ranks' records.

        Args:
            results: up to 16 numbers that the other ranks can read.

        Returns:
            The records of `rma.PeerTable`; `failed_ranks` then holds the failed ranks.
        """
        records, failed_ranks = self.peers.rendezvous(self._patience, results)
        self.failed_ranks = sorted({*self.failed_ranks, *failed_ranks})
        return records

    def load(self, center: dict[str, Any], sample: torch.Tensor, global_steps: int) -> None:
        """Restore the center and the step counter; every rank calls it, and a barrier must follow.

        Args:
            center: "y", shape (P,), and "version"; equal on all ranks if the center is shared.
            sample: this chain's sample, shape (P,).
            global_steps: number of steps that all chains have claimed.
        """
        if self.peers.size:
            self.peers.publish(sample.cpu().numpy())
        if self.windows is not None:
            self.windows.set(center["y"].numpy(), center["version"])
        elif isinstance(self.center, GossipCenter):
            self.center.set(center["y"], center["version"])
        self.counter.set(global_steps)

    def close(self) -> None:
        """Free everything; collective. If ranks have failed, the windows stay allocated until the process ends."""
        self._closing.set()
        if self._watcher is not None:
            self._watcher.join()
        if self.failed_ranks:
            self.peers.close(abandon=True)
            return
        if self._background is not None:
            self._background.close()
        if self._progress is not None:
            self._progress.close()
        for part in (self.group, self.windows, self.counter, self.peers):
            if part is not None:
                part.close()

    def _stalled(self) -> bool:
        """Return True if a stalled exchange is explained by an unresponsive rank."""
        self.report_heartbeats()
        return bool(self._reported)

    def _watch(self) -> None:
        # A step may take minutes, for example with an evaluation: the heartbeat shows that the process runs.
        while not self._closing.wait(self._patience / 6):
            self.peers.heartbeat()
            self.report_heartbeats()
