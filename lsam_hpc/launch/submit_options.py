"""The options of `lsam submit`, and the values that they accept."""

from __future__ import annotations

import re
import typing

from lsam_hpc.errors import InputError
from lsam_hpc.launch.templates_job import Job

HELP = {
    "system": "slurm, pbs, lsf or flux; default: the one whose programs are on the PATH",
    "name": "name of the job",
    "nodes": "number of nodes",
    "ranks_per_node": "ranks on a node; with GPUs, by default one per GPU",
    "cpus_per_rank": "cores for each rank",
    "gpus_per_node": "GPUs to request on each node",
    "time": "time limit, [days-]hours:minutes:seconds",
    "partition": "partition or queue; with Slurm and LSF also several, as in a,b",
    "account": "account or project",
    "qos": "quality of service (Slurm)",
    "constraint": "features of the nodes (Slurm)",
    "mem": "memory of each node, such as 64G or, with Slurm, 0 for all of it (Slurm, PBS)",
    "exclusive": "whole nodes",
    "select": "resources of each node, such as system=polaris or none, in place of ncpus, mpiprocs and ngpus (PBS)",
    "filesystems": "file systems that the job needs, such as home:eagle (PBS at ALCF)",
    "gpus": "options that request the GPUs, one per line, in place of --gpus-per-node and --gpu-bind (Slurm)",
    "uenv": "user environment to mount, such as prgenv-gnu/24.11:v2 (Slurm at CSCS)",
    "view": "view of the user environment (Slurm at CSCS)",
    "modules": "modules to load, separated by spaces, in a login shell",
    "directives": "further options of the scheduler, one per line",
    "setup": "shell lines that put python, lsam and their MPI on the PATH; default: put this Python's folder there",
    "environment": "environment variables, NAME=VALUE, one per line",
    "launch": "command that starts the ranks, such as 'srun --mpi=pmi2', in which {ranks}, {nodes}, {ranks_per_node}, "
    "{cpus_per_rank} and {gpus_per_node} are replaced; default: set by the system and Python's MPI",
    "requeue": "largest number of restarts after the job was stopped or killed",
    "warn": "seconds before the time limit at which the ranks write a checkpoint and exit",
    "sweep": "OPTION=VALUE,VALUE,...: one run for each value, in an array job",
    "chain": "number of jobs that continue the same run one after another",
    "pack": "tar file of the environment, for the nodes' own disks (Slurm)",
    "disk": "folder on each node's own disk, for the environment of --pack; the job expands $NAME",
}
HINTS = {"system": str | None, **{k: v for k, v in typing.get_type_hints(Job).items() if k in HELP}}
_WORD = re.compile(r"[\w.:@+%-]+")
_TIME = re.compile(r"(\d+-)?\d+:[0-5]\d:[0-5]\d")
# options that not all systems have -> what they may hold, and the systems
_PARTICULAR = {
    "qos": (r"[\w.:@+%-]+", ("slurm",)),
    "constraint": (r"[\w.:@+*&|()\[\],=-]+", ("slurm",)),
    "mem": (r"\d+[a-zA-Z]*", ("slurm", "pbs")),
    "select": (r"([a-zA-Z_][\w.=:@+-]*)?", ("pbs",)),
    "filesystems": (r"\w+(:\w+)*", ("pbs",)),
    "gpus": (r"(\s*--[\w.:=,{}-]+\s*)+", ("slurm",)),
    "uenv": (r"[\w.:@/,+-]+", ("slurm",)),
    "view": (r"[\w.:@/,+-]+", ("slurm",)),
}
_VARIABLE = re.compile(r"[A-Za-z_]\w*=.*")


def check(job: Job, system: str) -> None:
    """Raise InputError for the first value that is out of range or not safe in a batch script."""
    for name in ("nodes", "ranks_per_node", "cpus_per_rank", "chain"):
        if getattr(job, name) < 1:
            raise InputError(f"--{name.replace('_', '-')}: expected 1 or more, found {getattr(job, name)}")
    for name in ("gpus_per_node", "requeue", "warn"):
        if getattr(job, name) < 0:
            raise InputError(f"--{name.replace('_', '-')}: expected 0 or more, found {getattr(job, name)}")
    if job.gpus_per_node and job.ranks_per_node % job.gpus_per_node:
        raise InputError(
            f"--ranks-per-node: expected a multiple of {job.gpus_per_node} GPUs, found {job.ranks_per_node}"
        )
    for name in ("name", "partition", "account"):
        value = getattr(job, name)
        several = name == "partition" and system != "pbs"
        if value is not None and not all(_WORD.fullmatch(word) for word in (value.split(",") if several else [value])):
            raise InputError(f"--{name}: expected letters, digits and . : @ + - _ %, found {value!r}")
    if job.modules is not None and not re.fullmatch(r"[\w.:@/+-]+( +[\w.:@/+-]+)*", job.modules):
        raise InputError(f"--modules: expected names separated by spaces, found {job.modules!r}")
    for name, (pattern, systems) in _PARTICULAR.items():
        value = getattr(job, name)
        if value is not None and system not in systems:
            raise InputError(f"--{name}: expected {' or '.join(systems)}, found {system}: use --directives")
        if value is not None and not re.fullmatch(pattern, value):
            raise InputError(f"--{name}: expected what {' or '.join(systems)} can read, found {value!r}")
    if not _TIME.fullmatch(job.time):
        raise InputError(f"--time: expected [days-]hours:minutes:seconds, found {job.time!r}")
    if system != "pbs" and 2 * job.warn >= job.seconds:  # PBS sends no signal
        raise InputError(f"--warn: expected less than half of --time, {job.seconds / 2:g} s, found {job.warn}")
    for line in job.environment.splitlines():
        if line.strip() and not _VARIABLE.fullmatch(line.strip()):
            raise InputError(f"--environment: expected NAME=VALUE on each line, found {line.strip()!r}")
    if job.sweep is not None and not re.fullmatch(r"[a-z][a-z_-]*=[^,]+(,[^,]+)*", job.sweep):
        raise InputError(f"--sweep: expected OPTION=VALUE,VALUE,..., found {job.sweep!r}")
    if job.sweep is not None and system == "flux":
        raise InputError("--sweep: expected slurm, pbs or lsf, which have arrays of jobs, found flux")
    if job.sweep is not None and job.chain > 1:
        raise InputError("--sweep and --chain exclude each other")
    if system == "pbs" and job.sweep is not None and job.requeue:
        raise InputError(
            f"--requeue: expected 0 with --sweep on PBS, which restarts whole arrays only, found {job.requeue}"
        )
    if job.pack is not None and system != "slurm":
        raise InputError(f"--pack: expected Slurm, whose sbcast copies it, found {system}")
    if not job.disk.startswith(("/", "$")):  # the job checks what a variable holds
        raise InputError(f"--disk: expected an absolute path, found {job.disk!r}")
