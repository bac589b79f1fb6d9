"""Containers: each rank may be one, with a launcher outside, and must then share the node's processes and memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from lsam_hpc.util import processes
from lsam_hpc.util.launched import on_node

_VARIABLES = ("container", "APPTAINER_CONTAINER", "SINGULARITY_CONTAINER")
_FILES = ("run/.containerenv", ".dockerenv")
_SHARED = "/dev/shm"
_FLAGS = "with podman add --pid=host --ipc=host --network=host, with Apptainer no --pid (docs/howto/containers.md)"


def inside(env: Mapping[str, str] = os.environ, root: Path = Path("/")) -> bool:
    """Return whether this process runs in a container of podman, docker or Apptainer."""
    return any(name in env for name in _VARIABLES) or any((root / file).exists() for file in _FILES)


def wrong(env: Mapping[str, str] = os.environ) -> str | None:
    """Return why this rank's container keeps MPI from its launcher or the node's other ranks; None if it does not.

    Open MPI's ranks would crash in the first message, or hang at the start.

    Args:
        env: environment variables of this process.
    """
    if "PMIX_RANK" in env and int(env.get("SLURM_JOB_UID", os.getuid())) != os.getuid():
        return (
            f"user: expected ID {env['SLURM_JOB_UID']}, as SLURM_JOB_UID says, found {os.getuid()}: Slurm's PMIx "
            "refuses other users: start the container with --userns=keep-id or --user (docs/howto/containers.md)"
        )
    ranks = on_node(env)[1]
    if ranks == 1 or processes.ancestors(env):
        return None
    shared = f"that the {ranks} ranks of this node share"
    if processes.alone_in_namespace(env):
        return f"container: expected process IDs {shared}, found a namespace of this rank's own: {_FLAGS}"
    if _private_memory():
        return f"container: expected a {_SHARED} {shared}, found one of this rank's own: {_FLAGS}"
    return None


def _private_memory() -> bool:
    """Return whether /dev/shm is one that podman or docker made for the container: its source is named shm."""
    try:
        lines = (processes.PROC / "self/mountinfo").read_text().splitlines()
    except OSError:
        return False
    mounts = [line.split() for line in lines]
    return any(words[4] == _SHARED and words[words.index("-") + 2] == "shm" for words in mounts)
