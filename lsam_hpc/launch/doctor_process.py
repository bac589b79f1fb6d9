"""Checks of `lsam doctor` that look at each process by itself: Python, packages, GPUs, cores."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Sequence

import lsam_hpc
from lsam_hpc import preflight
from lsam_hpc.launch.doctor_report import Finding, Ranks, by_value

_HOROVOD = """
import mpi4py; mpi4py.rc.initialize = False
from mpi4py import MPI
import horovod, horovod.torch as hvd
from lsam_hpc.preflight import libraries
print(horovod.__version__, hvd.mpi_built(), bool(hvd.nccl_built()), " and ".join(libraries()), sep="|")
"""


def python(ranks: Ranks) -> Finding:
    """All ranks run the same Python and lsam-hpc."""
    found = ranks.each(lambda: f"Python {platform.python_version()}, lsam-hpc {lsam_hpc.__version__}, {sys.prefix}")
    return Finding("python", "ok" if len(set(found)) == 1 else "fail", by_value(found))


def torch(ranks: Ranks) -> Finding:
    """All ranks can import the same PyTorch."""

    def look() -> str:
        module = importlib.import_module("torch")
        cuda = f", CUDA {module.version.cuda}" if module.cuda.is_available() else ", no GPU"
        return f"torch {module.__version__}{cuda}, {module.get_num_threads()} threads"

    found = ranks.each(look)
    right = all(text.startswith("torch ") for text in found) and len({text.split(",")[0] for text in found}) == 1
    return Finding("torch", "ok" if right else "fail", by_value(found))


def gpus(ranks: Ranks) -> Finding:
    """No two ranks train on one GPU while another one is idle."""
    hosts = ranks.hosts()
    on_node = hosts[: ranks.comm.rank].count(hosts[ranks.comm.rank])

    def look() -> tuple[str, list[str]]:
        cuda = importlib.import_module("torch").cuda
        seen = [str(cuda.get_device_properties(i).uuid) for i in range(cuda.device_count())]
        return (seen[on_node % len(seen)] if seen else "", seen)  # the one that `lsam train` takes

    return judge_gpus(hosts, ranks.each(look))


def judge_gpus(hosts: Sequence[str], found: Sequence[tuple[str, list[str]] | str]) -> Finding:
    """Return what is to be said of the GPUs.

    Args:
        hosts: of each rank.
        found: the GPU that each rank would take and those that it sees, or why it cannot tell.
    """
    seen = [one for one in found if not isinstance(one, str)]
    if len(seen) < len(found):
        return Finding("gpus", "fail", next(one for one in found if isinstance(one, str)))
    if not any(there for _, there in seen):
        return Finding("gpus", "ok", "none")
    if without := [rank for rank, (_, there) in enumerate(seen) if not there]:
        return Finding("gpus", "fail", f"ranks {without} see none, others do: ask for GPUs on every node")
    taken = {f"{host} {own}" for host, (own, _) in zip(hosts, seen, strict=True)}
    idle = {f"{host} {one}" for host, (_, there) in zip(hosts, seen, strict=True) for one in there} - taken
    text = f"{len(hosts)} ranks on {len(taken)} GPUs" + (f", idle: {', '.join(sorted(idle))}" if idle else "")
    shared = len(taken) < len(hosts)
    return Finding("gpus", "fail" if idle and shared else "warn" if idle or shared else "ok", text)


def cores(ranks: Ranks) -> Finding:
    """Ranks are not bound to fewer cores than they are while others of the node are free."""
    found = ranks.each(lambda: (os.uname().nodename, tuple(sorted(os.sched_getaffinity(0))), os.cpu_count() or 1))
    return judge_cores(found)


def judge_cores(found: Sequence[tuple[str, tuple[int, ...], int]]) -> Finding:
    """Return what is to be said of the cores.

    Args:
        found: each rank's host, the cores that it may use, and how many the host has.
    """
    used = {host: {core for other, own, _ in found if other == host for core in own} for host, _, _ in found}
    crowded = [
        rank for rank, (host, own, there) in enumerate(found)
        if sum(1 for other, cores, _ in found if (other, cores) == (host, own)) > len(own) and len(used[host]) < there
    ]  # fmt: skip
    fewest = min(len(own) for _, own, _ in found)
    if crowded:
        return Finding("cores", "warn", f"ranks {crowded} share {fewest}, and the node has more: look at binding")
    return Finding("cores", "ok", f"{fewest} for each rank, or more")


def libraries(ranks: Ranks) -> Finding:
    """Each process has loaded one MPI library, the same on all ranks."""
    found = ranks.each(lambda: " and ".join(preflight.libraries()))
    right = len(set(found)) == 1 and " and " not in found[0]
    return Finding("mpi libraries", "ok" if right else "fail", by_value(found))


def horovod(ranks: Ranks) -> Finding:
    """Horovod, if it is there, is built with MPI, and with the one that mpi4py uses; rank 0's."""

    def look() -> tuple[str, str]:
        if importlib.util.find_spec("horovod") is None:
            return "ok", "not installed: lsam wrap needs it, lsam train does not"
        alone = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_COMM", "PMI", "PRTE", "SLURM_STEP"))}
        done = subprocess.run([sys.executable, "-c", _HOROVOD], capture_output=True, text=True, timeout=120, env=alone)
        if done.returncode != 0:
            return "fail", f"installed, and does not load: {(done.stderr.strip().splitlines() or ['no word'])[-1]}"
        version, mpi, nccl, loaded = done.stdout.strip().splitlines()[-1].split("|")
        if " and " in loaded:
            return "fail", f"{version} is built with another MPI than mpi4py's: {loaded}"
        level = "ok" if mpi == "True" else "fail"
        return level, f"{version}, MPI {'yes' if mpi == 'True' else 'no'}, NCCL {'yes' if nccl == 'True' else 'no'}"

    found = ranks.each(lambda: look() if ranks.comm.rank == 0 else None)[0]
    return Finding("horovod", "fail", found) if isinstance(found, str) else Finding("horovod", *found)
