"""`lsam --version`: the versions that a report of a problem needs."""

from __future__ import annotations

import platform
import re
from importlib import metadata
from pathlib import Path

import lsam_hpc
from lsam_hpc.trajectory.provenance import git_state
from lsam_hpc.util import preflight


def versions() -> str:
    """Return one line: lsam-hpc and its commit, Python, torch, mpi4py and its MPI library, Horovod."""
    source, code = Path(lsam_hpc.__file__).parents[1], ""
    if (source / ".git").exists():  # else this is an installed copy, perhaps within another project's repository
        commit, dirty = git_state(source)
        code = f" (commit {commit[:12]}{', changed' * (dirty > 0)})" if commit else ""
    try:
        library = re.sub(r"^MPICH Version:\s*", "MPICH ", re.split("[,\n]", preflight.library_version())[0])
    except preflight.StartError:
        library = "no MPI library"
    return (
        f"lsam-hpc {lsam_hpc.__version__}{code}, Python {platform.python_version()}, torch {_installed('torch')}, "
        f"mpi4py {_installed('mpi4py')} ({library}), Horovod {_installed('horovod')}"
    )


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"
