"""`lsam submit [options] -- lsam train ...`: write a batch script and submit it."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsam_hpc.errors import InputError
from lsam_hpc.launch.templates import SYSTEMS, render
from lsam_hpc.launch.templates_job import Job
from lsam_hpc.options.files import read_options, unknown_option
from lsam_hpc.options.option import kind
from lsam_hpc.util import preflight
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.log import get_logger

_LOG = get_logger(__name__)

HELP = {
    "system": "slurm, pbs or lsf; default: the one whose programs are on the PATH",
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
    "select": "resources of each node, such as system=polaris, in place of ncpus, mpiprocs and ngpus (PBS)",
    "gpus": "options that request the GPUs, one per line, in place of --gpus-per-node and --gpu-bind (Slurm)",
    "directives": "further options of the scheduler, one per line",
    "setup": "shell lines that put python, lsam and their MPI on the PATH; default: put this Python's folder there",
    "environment": "environment variables, NAME=VALUE, one per line",
    "launch": "command that starts the ranks, such as 'srun --mpi=pmi2'; default: set by the system and Python's MPI",
    "requeue": "largest number of restarts after the job was stopped or killed",
    "warn": "seconds before the time limit at which the ranks write a checkpoint and exit",
    "sweep": "OPTION=VALUE,VALUE,...: one run for each value, in an array job",
    "chain": "number of jobs that continue the same run one after another",
    "pack": "tar file of the environment, for the nodes' own disks (Slurm)",
    "disk": "folder on each node's own disk, for the environment of --pack",
}
HINTS = {"system": str | None, **{k: v for k, v in typing.get_type_hints(Job).items() if k in HELP}}
_WORD = re.compile(r"[\w.:@+%-]+")
_TIME = re.compile(r"(\d+-)?\d+:[0-5]\d:[0-5]\d")
# options that not all systems have -> what they may hold, and the systems
_PARTICULAR = {
    "qos": (r"[\w.:@+%-]+", ("slurm",)),
    "constraint": (r"[\w.:@+*&|()\[\],=-]+", ("slurm",)),
    "mem": (r"\d+[a-zA-Z]*", ("slurm", "pbs")),
    "select": (r"[a-zA-Z_][\w.=:@+-]*", ("pbs",)),
    "gpus": (r"(\s*--[\w.:=,-]+\s*)+", ("slurm",)),
}
_VARIABLE = re.compile(r"[A-Za-z_]\w*=.*")


def main(argv: Sequence[str]) -> int:
    """Run `lsam submit`; return the exit code."""
    system, job, dry_run = parse(argv)
    script = render(job, system)
    if dry_run:
        print(script, end="")
        return 0
    previous = ""
    for _ in range(job.chain):
        previous = _submit(system, script, SYSTEMS[system].after(previous) if previous else [])
        print(previous)
    return 0


def parse(argv: Sequence[str]) -> tuple[str, Job, bool]:
    """Return the batch system, the job, and whether to print its script only.

    Raises:
        InputError: an option is unknown or out of range, or no command is given.
    """
    parser = Parser(
        prog="lsam submit",
        allow_abbrev=False,
        usage="lsam submit [options] -- lsam train ...",
        description="Write a batch script for a command that runs on every rank, and submit it.",
    )
    parser.add_argument(
        "--site", metavar="FILE", help="TOML or YAML file with a centre's options, named as here; flags win"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the script, and submit nothing")
    defaults = {field.name: field.default for field in dataclasses.fields(Job)}
    for name, text in HELP.items():
        default = defaults.get(name)
        shown = f"{text} (default: {default})" if default not in (None, "") else text
        flag = f"--{name.replace('_', '-')}"
        if HINTS[name] is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
        else:
            parser.add_argument(flag, type=kind(HINTS[name]), default=argparse.SUPPRESS, help=shown)
    argv = list(argv)
    split = argv.index("--") if "--" in argv else len(argv)
    known, unknown = parser.parse_known_args(argv[:split])
    if unknown:
        raise InputError(unknown_option(unknown[0], [f"--{name.replace('_', '-')}" for name in HELP]))
    flags = vars(known)
    site, dry_run = flags.pop("site"), flags.pop("dry_run")
    options: dict[str, Any] = (read_options(Path(site), HINTS) if site else {}) | flags
    words = argv[split + 1 :]
    if not words:
        raise InputError("command: expected lsam submit [options] -- lsam train ..., found none")
    system = options.pop("system", None) or _installed_system()
    if system not in SYSTEMS:
        raise InputError(f"--system: expected one of {', '.join(SYSTEMS)}, found {system!r}")
    if options.get("gpus_per_node") and "ranks_per_node" not in options:
        options["ranks_per_node"] = options["gpus_per_node"]
    options.setdefault("setup", f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH")
    if "launch" in options:
        options["launch"] = shlex.join(_split("--launch", options["launch"]))
    else:
        options["launch"] = _launcher(system)
    about = " ".join(["Made by:", shlex.join(["lsam", "submit", *argv])])
    command, out = _command(words, options)
    job = Job(command=command, out=out, about=about, **options)
    check(job, system)
    return system, job, dry_run


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
    if job.sweep is not None and job.chain > 1:
        raise InputError("--sweep and --chain exclude each other")
    if system == "pbs" and job.sweep is not None and job.requeue:
        raise InputError(
            f"--requeue: expected 0 with --sweep on PBS, which restarts whole arrays only, found {job.requeue}"
        )
    if job.pack is not None and system != "slurm":
        raise InputError(f"--pack: expected Slurm, whose sbcast copies it, found {system}")
    if not job.disk.startswith("/"):
        raise InputError(f"--disk: expected an absolute path, found {job.disk!r}")


def _command(words: Sequence[str], options: dict[str, Any]) -> tuple[str, str | None]:
    """Return the command as shell text, and the run directory that it names.

    A training run without --out gets its own directory, and resumes there.
    """
    training = list(words[:2]) == ["lsam", "train"] or list(words[1:4]) == ["-m", "lsam_hpc", "train"]
    if not training:
        if options.get("sweep"):
            raise InputError(f"--sweep: expected a command lsam train, found {' '.join(words[:2])!r}")
        return shlex.join(words), None
    kept, out = [], None
    rest = iter(words)
    for word in rest:
        if word == "--out" or word.startswith("--out="):
            out = word.removeprefix("--out=") if "=" in word else next(rest, "")
        else:
            kept.append(word)
    if out is not None and options.get("sweep"):
        raise InputError(f"--out: expected none with --sweep, whose runs get their own directories, found {out!r}")
    text = shlex.join(kept) + ' --out "$out"'
    if not any(word.startswith(("--resume", "--overwrite")) for word in words):
        text += " --resume auto"
    return text, out


def _split(option: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise InputError(f"{option}: expected words as in a shell, found {text!r}: {error}") from error


def _installed_system() -> str:
    for system, batch in SYSTEMS.items():
        if shutil.which(batch.submit[0]):
            return system
    raise InputError(
        "--system: expected sbatch, qsub or bsub on the PATH, or one of " + ", ".join(SYSTEMS) + ", found none"
    )


def _launcher(system: str) -> str:
    """Return the command that starts ranks with this Python's MPI, without starting MPI."""
    batch = SYSTEMS[system]
    try:
        version = preflight.library_version()
    except preflight.StartError as error:
        _LOG.warning("no MPI library here: the script starts Open MPI; for another one give --launch (%s)", error)
        return batch.openmpi
    if version.startswith("Open MPI"):
        return batch.openmpi
    return batch.cray if preflight.is_cray(version) else batch.mpich


def _submit(system: str, script: str, options: Sequence[str]) -> str:
    """Submit a script; return the job's id."""
    program, *flags = SYSTEMS[system].submit
    try:
        done = subprocess.run([program, *flags, *options], input=script, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"{program}: expected it to accept the job, found: {error}") from error
    if done.returncode != 0:
        raise InputError(f"{program}: expected it to accept the job, found: {' '.join(done.stderr.split())}")
    job_id = re.search(r"<(\d+)>", done.stdout) if system == "lsf" else None  # Job <123> is submitted to queue <q>.
    return job_id[1] if job_id else done.stdout.strip().partition(";")[0]
