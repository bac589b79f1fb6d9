"""What a launcher tells its ranks in environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping

# Set for each rank by its launcher. Slurm's variables may describe the job, or the daemons of mpirun.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "JSM_NAMESPACE_SIZE", "FLUX_JOB_SIZE")
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "JSM_NAMESPACE_RANK", "FLUX_TASK_RANK", "SLURM_PROCID")
_LOCAL = (
    ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("PMI_LOCAL_RANK", "PMI_LOCAL_SIZE"),  # PALS
)


def launched_rank(env: Mapping[str, str] = os.environ) -> int:
    """Return this process's rank as its launcher set it; 0 without a launcher."""
    return int(env.get(rank_variable(env) or "", 0))


def rank_variable(env: Mapping[str, str] = os.environ) -> str | None:
    """Return the name of the variable that holds this process's rank; None without a launcher."""
    return next((name for name in _RANKS if name in env), None)


def launched_ranks(env: Mapping[str, str] = os.environ) -> tuple[int, str]:
    """Return the number of ranks that the launcher started, and its variable's name; (1, "") without a launcher."""
    for name in _SIZES:
        if name in env:
            return int(env[name]), name
    if "SLURM_STEP_NUM_TASKS" in env and "SLURM_STEP_ID" in env:
        return int(env["SLURM_STEP_NUM_TASKS"]), "SLURM_STEP_NUM_TASKS"
    return 1, ""


def on_node(env: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return this process's rank on its node and the node's number of ranks; (0, 1) without a launcher."""
    for rank, size in _LOCAL:
        if rank in env and size in env:
            return int(env[rank]), int(env[size])
    if launched_ranks(env)[1] and "SLURM_STEP_TASKS_PER_NODE" in env:
        nodes: list[int] = []
        for word in env["SLURM_STEP_TASKS_PER_NODE"].split(","):  # 2(x3),1: three nodes with two and one with one
            tasks, _, times = word.partition("(x")
            nodes += [int(tasks)] * int(times.rstrip(")") or 1)
        return int(env.get("SLURM_LOCALID", 0)), nodes[int(env.get("SLURM_NODEID", 0))]
    return 0, 1
