"""Sends a rank's heartbeats, and reports ranks whose heartbeats stop or return."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from lsam_hpc import rma
from lsam_hpc.util.log import get_logger

_LOG = get_logger(__name__)


class Heartbeats:
    """A daemon thread that sends heartbeats: a step may take minutes, for example with an evaluation.

    Args:
        peers: the table of the ranks.
        patience: seconds after which a rank without a heartbeat is unresponsive.
        numbers: of the ranks at the start of the job.
        names: the host of each rank at the start of the job.
        threaded: False: there is no thread, so that a rank sends heartbeats at its steps only, and sees no others.

    Attributes:
        unresponsive: ranks without a heartbeat, as numbered in `peers`.
    """

    def __init__(
        self, peers: rma.PeerTable, patience: float, numbers: Sequence[int], names: Sequence[str], *, threaded: bool
    ) -> None:
        self._peers = peers
        self._patience = patience
        self.numbers = numbers
        self._names = names
        self.unresponsive: set[int] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lsam-heartbeats", daemon=True) if threaded else None
        if self._thread is not None:
            self._thread.start()

    def stop(self, timeout: float | None = None) -> None:
        """End the thread; wait for it at most `timeout` seconds. Default None: without a limit."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self) -> None:
        while not self._ended.wait(self._patience / 6):
            self._peers.heartbeat()
            self._report()

    def _report(self) -> None:
        """Log each rank whose heartbeat has stopped or returned, once; the lowest responsive rank writes it."""
        comm = self._peers.comm
        unresponsive = set(self._peers.unresponsive(self._patience))
        if self._ended.is_set():
            return
        writes = min(set(range(comm.size)) - unresponsive | {comm.rank}) == comm.rank
        for rank in sorted((unresponsive ^ self.unresponsive) - set(self._peers.failed())):
            if writes:
                news = f"sent no heartbeat for {self._patience:g} s" if rank in unresponsive else "responds again"
                number = self.numbers[rank]
                _LOG.warning("rank %d (%s) %s", number, self._names[number], news)
        self.unresponsive = unresponsive
