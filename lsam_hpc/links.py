"""What ties a rank to the others: windows, peers, groups and helper threads, as the options say."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import Any

import torch
from mpi4py import MPI
from numpy.typing import NDArray

from lsam_hpc import rma
from lsam_hpc.exchange import Background, RmaCenter
from lsam_hpc.groups import Group, GroupCenter
from lsam_hpc.linkoptions import DEFAULTS, LinkOptions
from lsam_hpc.optim.center import Center
from lsam_hpc.optim.runner import Inline, Runner
from lsam_hpc.topology import GossipCenter, LeaderCenter


class Links:
    """A rank's windows and threads; making and closing them is collective.

    Args:
        comm: the ranks.
        start: the center's start, shape (P,), the same on every rank.
        options: checked by `check_links`.
        lockstep: exchanges run in rank order, in the training thread.
        seed: of the random graph.
    """

    def __init__(
        self, comm: MPI.Intracomm, start: NDArray[Any], options: LinkOptions, lockstep: bool, seed: int
    ) -> None:
        given: LinkOptions = {**DEFAULTS, **options}
        self.comm = comm
        self.lost: list[int] = []
        self._patience = given["silent_after"]
        self._reported: set[int] = set()
        self._closing = threading.Event()
        self._watcher: threading.Thread | None = None
        topology, publish = given["topology"], given["publish"]
        if topology != "center" and publish == "none":
            publish = "sample"
        self.perturbed = publish == "perturbed"
        multiple = MPI.Query_thread() == MPI.THREAD_MULTIPLE
        needed = rma.reason(comm)
        if not multiple and comm.rank == 0 and (needed or (given["overlap"] and not lockstep)):
            print(f"lsam-hpc: MPI runs without MPI_THREAD_MULTIPLE: exchanges are not overlapped, and ranks wait for "
                  f"each other{f' ({needed})' if needed else ''}", file=sys.stderr)  # fmt: skip
        # The half-precision center has a helper thread of its own.
        helped = not needed or not multiple or given["wire_dtype"] != "float32"
        self._progress = None if helped else rma.Progress(comm)
        self.peers = rma.Peers(comm, start.size if publish != "none" else 0, start.dtype.name)
        if publish != "none":
            self.peers.publish(start)
        self.tickets = rma.Counter(comm)
        self.group = (
            Group(
                comm,
                given["group_size"],
                given["group_ascent"],
                given["group_reduce"],
                given["group_ranks"],
                given["group_average"],
            )
            if given["group_size"] > 1 or given["group_ranks"] is not None
            else None
        )
        self.windows: rma.Center | rma.HalfCenter | None = None
        self.center: Center
        if topology == "center":
            wire = given["wire_dtype"]
            self.windows = (
                rma.Center(comm, start.size, start.dtype.name, start)
                if wire == "float32"
                else rma.HalfCenter(comm, start.size, wire, start)
            )
            self.center = RmaCenter(self.windows, lockstep, self.peers if publish != "none" else None)
        elif topology == "gossip":
            self.center = GossipCenter(
                self.peers,
                lambda: self._reported,
                torch.from_numpy(start),
                given["graph"],
                given["degree"],
                given["max_jump"],
                seed,
            )
        else:
            self.center = LeaderCenter(self.peers, lambda: self._reported)
        if self.group is not None:
            self.center = GroupCenter(self.center, self.group)
        self._background = Background(self._stuck) if given["overlap"] and multiple and not lockstep else None
        self.runner: Runner = self._background or Inline()
        if multiple:
            self._watcher = threading.Thread(target=self._watch, name="lsam-watch", daemon=True)
            self._watcher.start()

    @property
    def silent(self) -> list[int]:
        """The ranks that show no sign of life, as of the last look."""
        return sorted(self._reported)

    def look(self) -> None:
        """Say once for each rank that has fallen silent, or is back; the lowest rank that is not silent says it."""
        silent = set(self.peers.silent(self._patience))
        speaks = min(set(range(self.comm.size)) - silent | {self.comm.rank}) == self.comm.rank
        for rank in sorted(silent ^ self._reported):
            if speaks:
                what = f"has been silent for {self._patience:g} s" if rank in silent else "is back"
                print(f"lsam-hpc: rank {rank} ({self.peers.names[rank]}) {what}", file=sys.stderr)
        self._reported = silent

    def meet(self, results: Sequence[float]) -> NDArray[Any]:
        """Wait until every other rank has come here as often or is lost, and return all ranks' records.

        Args:
            results: up to 16 numbers for the others to read.

        Returns:
            The records of `rma.Peers`; `lost` then holds the ranks that were lost.
        """
        records, lost = self.peers.meet(self._patience, results)
        self.lost = sorted({*self.lost, *lost})
        return records

    def load(self, center: dict[str, Any], sample: torch.Tensor, tickets: int) -> None:
        """Make the center and the tickets what was saved; every rank calls it, and a barrier must follow.

        Args:
            center: "y", shape (P,), and "version": alike on every rank if the center is shared.
            sample: of this chain, shape (P,).
            tickets: that were drawn.
        """
        if self.peers.size:
            self.peers.publish(sample.cpu().numpy())
        if self.windows is not None:
            self.windows.set(center["y"].numpy(), center["version"])
        elif isinstance(self.center, GossipCenter):
            self.center.set(center["y"], center["version"])
        self.tickets.set(tickets)

    def close(self) -> None:
        """Free everything; collective unless ranks were lost: then it is left to the process's end."""
        self._closing.set()
        if self._watcher is not None:
            self._watcher.join()
        if self.lost:
            self.peers.close(abandon=True)
            return
        if self._background is not None:
            self._background.close()
        if self._progress is not None:
            self._progress.close()
        for part in (self.group, self.windows, self.tickets, self.peers):
            if part is not None:
                part.close()

    def _stuck(self) -> bool:
        """Return whether an exchange that does not end has a rank's silence for a reason."""
        self.look()
        return bool(self._reported)

    def _watch(self) -> None:
        # Steps may be minutes apart, in an evaluation for instance: what lives is the process.
        while not self._closing.wait(self._patience / 6):
            self.peers.live()
            self.look()
