"""Checks of `lsam doctor` on each process: Python, packages, cores."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence

import lsam_hpc
from lsam_hpc.launch.doctor_report import Finding, Ranks, by_value
from lsam_hpc.util import preflight

_HOROVOD = """
import mpi4py; mpi4py.rc.initialize = False
from mpi4py import MPI
import horovod, horovod.torch as hvd
from lsam_hpc.util.preflight import libraries
print(horovod.__version__, hvd.mpi_built(), bool(hvd.nccl_built()), " and ".join(libraries()), sep="|")
"""


def python(ranks: Ranks) -> Finding:
    """Check that all ranks run the same Python and lsam-hpc."""
    texts = ranks.each(lambda: f"Python {platform.python_version()}, lsam-hpc {lsam_hpc.__version__}, {sys.prefix}")
    return Finding("python", "ok" if len(set(texts)) == 1 else "fail", by_value(texts))


def torch(ranks: Ranks) -> Finding:
    """Check that all ranks can import the same PyTorch."""

    def version() -> str:
        module = importlib.import_module("torch")
        kind = importlib.import_module("lsam_hpc.optim.accelerators").kind_of("auto")
        versions = {"cpu": "no GPU", "xpu": "XPU", "cuda": f"CUDA {module.version.cuda}"}
        gpus = f"ROCm {module.version.hip}" if kind == "cuda" and module.version.hip else versions[kind]
        return f"torch {module.__version__}, {gpus}, {module.get_num_threads()} threads"

    texts = ranks.each(version)
    good = all(text.startswith("torch ") for text in texts) and len({text.split(",")[0] for text in texts}) == 1
    return Finding("torch", "ok" if good else "fail", by_value(texts))


def cores(ranks: Ranks) -> Finding:
    """Check that ranks do not share cores while other cores of the node are free."""
    affinities = ranks.each(lambda: (os.uname().nodename, tuple(sorted(os.sched_getaffinity(0))), os.cpu_count() or 1))
    return diagnose_cores(affinities, ranks.each(lambda: os.environ.get("OMP_NUM_THREADS", "")))


def diagnose_cores(affinities: Sequence[tuple[str, tuple[int, ...], int]], threads: Sequence[str] = ()) -> Finding:
    """Return the finding on the cores.

    Args:
        affinities: of each rank: its host, the cores that it may use, and the number of cores of the host.
        threads: of each rank: OMP_NUM_THREADS, '' if it is not set. Default: not set.
    """
    used: dict[str, set[int]] = {}
    for host, allowed, _ in affinities:
        used.setdefault(host, set()).update(allowed)
    sharing = Counter((host, allowed) for host, allowed, _ in affinities)
    crowded = [
        rank
        for rank, (host, allowed, total) in enumerate(affinities)
        if sharing[host, allowed] > len(allowed) and len(used[host]) < total
    ]
    fewest = min(len(allowed) for _, allowed, _ in affinities)
    if crowded:
        return Finding("cores", "warn", f"ranks {crowded} share {fewest}, the node has more: check the binding")
    wide = [
        rank
        for rank, ((_, allowed, _), word) in enumerate(zip(affinities, threads, strict=False))
        if (first := word.split(",")[0].strip()).isdecimal() and int(first) > len(allowed)
    ]
    if wide:
        first = threads[wide[0]]
        return Finding(
            "cores",
            "warn",
            f"ranks {wide} may use {len(affinities[wide[0]][1])} each, but OMP_NUM_THREADS={first}: check the binding",
        )
    return Finding("cores", "ok", f"{fewest} for each rank, or more")


def libraries(ranks: Ranks) -> Finding:
    """Check that each process has loaded one MPI library, the same on all ranks."""
    loaded = ranks.each(lambda: " and ".join(preflight.libraries()))
    good = len(set(loaded)) == 1 and " and " not in loaded[0]
    return Finding("mpi libraries", "ok" if good else "fail", by_value(loaded))


def horovod(ranks: Ranks) -> Finding:
    """Check on rank 0 that Horovod, if installed, is built with the MPI library of mpi4py."""

    def check() -> tuple[str, str]:
        if importlib.util.find_spec("horovod") is None:
            return "ok", "not installed: lsam wrap needs it, lsam train does not"
        env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_COMM", "PMI", "PRTE", "SLURM_STEP"))}
        done = subprocess.run([sys.executable, "-c", _HOROVOD], capture_output=True, text=True, timeout=120, env=env)
        if done.returncode != 0:
            return (
                "fail",
                f"installed, but cannot be loaded: {(done.stderr.strip().splitlines() or ['no message'])[-1]}",
            )
        version, mpi, nccl, loaded = done.stdout.strip().splitlines()[-1].split("|")
        if " and " in loaded:
            return "fail", f"{version} is built with another MPI than mpi4py's: {loaded}"
        level = "ok" if mpi == "True" else "fail"
        return level, f"{version}, MPI {'yes' if mpi == 'True' else 'no'}, NCCL {'yes' if nccl == 'True' else 'no'}"

    result = ranks.each(lambda: check() if ranks.comm.rank == 0 else None)[0]
    return Finding("horovod", "fail", result) if isinstance(result, str) else Finding("horovod", *result)


CHECKS = (python, torch, cores)  # of a process without MPI
