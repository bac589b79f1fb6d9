"""Checks of `lsam doctor` on MPI: one world, threads, windows, and how soon a busy rank is reached."""

from __future__ import annotations

import time

import numpy as np
from mpi4py import MPI

from lsam_hpc import rma
from lsam_hpc.errors import InputError
from lsam_hpc.launch.doctor_report import Finding, Level, Ranks, by_value
from lsam_hpc.rma.progress import Progress, reason, require_threads

ELEMENTS = 100_000  # of the center that is tried
BUSY = 0.5  # s for which a rank stays away from MPI
SOON = 0.1  # s in which it should be reached all the same
_NOT_GOOD = {"Open MPI": (5, 0, 0), "MPICH": (4, 1, 0)}  # releases before these


def mpi(ranks: Ranks) -> Finding:
    """All ranks use the same MPI, and one that is known to be good."""
    found = ranks.each(MPI.get_vendor)
    text = by_value([f"{name} {'.'.join(map(str, version))}" for name, version in found])
    if len(set(found)) > 1:
        return Finding("mpi", "fail", text)
    name, version = found[0]
    since = _NOT_GOOD.get(name, version)
    if version < since:
        return Finding("mpi", "warn", f"{text}: expected {'.'.join(map(str, since))} or later (docs/running.md)")
    return Finding("mpi", "ok", text)


def placement(ranks: Ranks) -> Finding:
    """Say which ranks are where."""
    hosts = ranks.hosts()
    counts = {host: hosts.count(host) for host in hosts}
    few, many = min(counts.values()), max(counts.values())
    text = f"{len(hosts)} ranks on {len(counts)} nodes, {few if few == many else f'{few} to {many}'} on each"
    return Finding("placement", "ok", text)


def threads(ranks: Ranks) -> Finding:
    """MPI lets several threads call it at once."""

    def look() -> str:
        require_threads("the exchange thread")
        return "MPI_THREAD_MULTIPLE"

    found = ranks.each(look)
    return Finding("threads", "ok" if set(found) == {"MPI_THREAD_MULTIPLE"} else "fail", by_value(found))


def window(ranks: Ranks) -> Finding:
    """A center can be made, and what all ranks add to it arrives."""
    comm = ranks.comm
    try:
        with rma.Center(comm, ELEMENTS) as center:
            center.add(np.ones(ELEMENTS, np.float32))
            rma.barrier(comm)
            y = np.empty(ELEMENTS, np.float32)
            center.read(y)
            rma.barrier(comm)
    except InputError as error:  # on all ranks alike
        return Finding("window", "fail", str(error))
    wrong = comm.allreduce(int((y != comm.size).sum()))
    if wrong:
        return Finding("window", "fail", f"{wrong} of {ELEMENTS * comm.size} elements are not what was added")
    return Finding("window", "ok", f"{ELEMENTS} elements, exact on all ranks")


def progress(ranks: Ranks) -> Finding:
    """A rank that computes is reached by others, by itself or with the helper thread that a run then has."""
    comm = ranks.comm
    if comm.size == 1:
        return Finding("progress", "ok", "one rank: nobody waits")
    why = reason(comm)
    alone = _seconds(comm)
    if why is None:
        level: Level = "ok" if alone < SOON else "fail"
        return Finding("progress", level, f"a busy rank is reached in {alone * 1e3:.1f} ms, without help")
    with Progress(comm):
        helped = _seconds(comm)
    text = f"a busy rank is reached in {helped * 1e3:.0f} ms by a helper thread, {alone * 1e3:.0f} ms without: {why}"
    return Finding("progress", "ok" if helped < SOON else "warn", text)


def clocks(ranks: Ranks) -> Finding:
    """The nodes' clocks agree: logs of ranks are put together by time."""
    comm, worst = ranks.comm, 0.0
    for rank in ranks.first_of_nodes()[1:]:
        if comm.rank == rank:
            for _ in range(5):
                comm.recv(source=0)
                comm.send(time.time(), dest=0)
        elif comm.rank == 0:
            rounds = []
            for _ in range(5):
                before = time.time()
                comm.send(None, dest=rank)
                there = comm.recv(source=rank)
                after = time.time()
                rounds.append((after - before, abs(there - (before + after) / 2)))
            worst = max(worst, min(rounds)[1])
    worst = comm.bcast(worst)
    return Finding("clocks", "ok" if worst < 1 else "warn", f"at most {worst * 1e3:.1f} ms apart")


def _seconds(comm: MPI.Intracomm) -> float:
    """Return how long rank 0 waits for a number of the last rank's, which is busy."""
    window = MPI.Win.Allocate(8, comm=comm)
    number, waited = np.zeros(1), 0.0
    window.Lock_all()
    window.Flush_all()
    rma.barrier(comm)
    if comm.rank == comm.size - 1:
        time.sleep(BUSY)
    elif comm.rank == 0:
        time.sleep(BUSY / 10)  # until it is
        clock = time.perf_counter()
        window.Get(number, comm.size - 1)
        window.Flush(comm.size - 1)
        waited = time.perf_counter() - clock
    rma.barrier(comm)
    window.Unlock_all()
    window.Free()
    return float(comm.bcast(waited))
