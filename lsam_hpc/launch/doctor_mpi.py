"""Checks of `lsam doctor` on MPI: one world, threads, windows, and the latency of one-sided access to a busy rank."""

from __future__ import annotations

import time

import numpy as np
from mpi4py import MPI

from lsam_hpc import rma
from lsam_hpc.errors import InputError
from lsam_hpc.launch.doctor_report import Finding, Level, Ranks, by_value
from lsam_hpc.rma.progress import ProgressThread, require_threads, why_progress_needed
from lsam_hpc.util.container import inside
from lsam_hpc.util.launched import launched_ranks

ELEMENTS = 100_000  # size of the tested center
BUSY = 0.5  # s during which a rank makes no MPI call
SOON = 0.1  # s in which a busy rank should answer
_FIRST_GOOD = {"Open MPI": (5, 0, 0), "MPICH": (4, 1, 0)}  # earlier releases have known bugs


def mpi(ranks: Ranks) -> Finding:
    """Check that all ranks use the same MPI library, of a version without known bugs."""
    vendors = ranks.each(MPI.get_vendor)
    text = by_value([f"{name} {'.'.join(map(str, version))}" for name, version in vendors])
    if len(set(vendors)) > 1:
        return Finding("mpi", "fail", text)
    name, version = vendors[0]
    first_good = _FIRST_GOOD.get(name, version)
    if version < first_good:
        good = ".".join(map(str, first_good))
        return Finding("mpi", "warn", f"{text}: expected {good} or later (docs/howto/train.md)")
    return Finding("mpi", "ok", text)


def placement(ranks: Ranks) -> Finding:
    """Report the number of ranks and nodes."""
    hosts = ranks.hosts()
    counts = {host: hosts.count(host) for host in hosts}
    few, many = min(counts.values()), max(counts.values())
    text = f"{len(hosts)} ranks on {len(counts)} nodes, {few if few == many else f'{few} to {many}'} on each"
    if len(hosts) == 1 and not launched_ranks()[1] and inside():
        hint = "a container without a launcher's variables: if srun or mpirun started it, pass them on"
        return Finding("placement", "warn", f"{text}: {hint} (docs/howto/containers.md)")
    return Finding("placement", "ok", text)


def threads(ranks: Ranks) -> Finding:
    """Check that several threads may call MPI at once."""

    def thread_level() -> str:
        require_threads("the exchange thread")
        return "MPI_THREAD_MULTIPLE"

    levels = ranks.each(thread_level)
    return Finding("threads", "ok" if set(levels) == {"MPI_THREAD_MULTIPLE"} else "fail", by_value(levels))


def window(ranks: Ranks) -> Finding:
    """Check that a center can be made and that the adds of all ranks arrive."""
    comm = ranks.comm
    try:
        with rma.Center(comm, ELEMENTS) as center:
            center.add(np.ones(ELEMENTS, np.float32))
            rma.barrier(comm)
            y = np.empty(ELEMENTS, np.float32)
            center.read(y)
            rma.barrier(comm)
    except InputError as error:  # raised on all ranks
        return Finding("window", "fail", str(error))
    wrong = comm.allreduce(int((y != comm.size).sum()))
    if wrong:
        return Finding("window", "fail", f"{wrong} of {ELEMENTS * comm.size} elements differ from the sum of the adds")
    return Finding("window", "ok", f"{ELEMENTS} elements, exact on all ranks")


def progress(ranks: Ranks) -> Finding:
    """Check that others can access a rank that computes, with the progress thread if a run would start one."""
    comm = ranks.comm
    if comm.size == 1:
        return Finding("progress", "ok", "one rank: nobody waits")
    why = why_progress_needed(comm)
    without_help = _busy_latency(comm)
    if why is None:
        level: Level = "ok" if without_help < SOON else "fail"
        return Finding("progress", level, f"a busy rank is reached in {without_help * 1e3:.1f} ms, without help")
    with ProgressThread(comm):
        helped = _busy_latency(comm)
    times = f"{helped * 1e3:.0f} ms by a helper thread, {without_help * 1e3:.0f} ms without"
    text = f"a busy rank is reached in {times}: {why}"
    return Finding("progress", "ok" if helped < SOON else "warn", text)


def clocks(ranks: Ranks) -> Finding:
    """Check that the nodes' clocks agree, because the logs of ranks are merged by time."""
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
                remote = comm.recv(source=rank)
                after = time.time()
                rounds.append((after - before, abs(remote - (before + after) / 2)))
            worst = max(worst, min(rounds)[1])
    worst = comm.bcast(worst)
    return Finding("clocks", "ok" if worst < 1 else "warn", f"at most {worst * 1e3:.1f} ms apart")


def _busy_latency(comm: MPI.Intracomm) -> float:
    """Return the time of a Get by rank 0 from the last rank while that makes no MPI call, in seconds."""
    window = MPI.Win.Allocate(8, comm=comm)
    number, waited = np.zeros(1), 0.0
    window.Lock_all()
    window.Flush_all()
    rma.barrier(comm)
    if comm.rank == comm.size - 1:
        time.sleep(BUSY)
    elif comm.rank == 0:
        time.sleep(BUSY / 10)  # the last rank is busy by then
        clock = time.perf_counter()
        window.Get(number, comm.size - 1)
        window.Flush(comm.size - 1)
        waited = time.perf_counter() - clock
    rma.barrier(comm)
    window.Unlock_all()
    window.Free()
    return float(comm.bcast(waited))
