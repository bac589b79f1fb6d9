"""`lsam submit [options] -- lsam train ...`: write a batch script and submit it."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsam_hpc.errors import InputError
from lsam_hpc.launch import site_files
from lsam_hpc.launch.submit_options import HELP, HINTS, check
from lsam_hpc.launch.templates import SYSTEMS, render
from lsam_hpc.launch.templates_job import Job
from lsam_hpc.options.files import unknown_option
from lsam_hpc.options.option import kind
from lsam_hpc.util import preflight
from lsam_hpc.util.arguments import Parser
from lsam_hpc.util.log import get_logger

_LOG = get_logger(__name__)


def main(argv: Sequence[str]) -> int:
    """Run `lsam submit`; return the exit code."""
    if _arguments(argv)[0]["site"] == "list":
        print(site_files.table())
        return 0
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
    flags, words = _arguments(argv)
    site, dry_run = flags.pop("site"), flags.pop("dry_run")
    of_site = site_files.read(site) if site else {}
    options: dict[str, Any] = of_site | flags
    for name in of_site.keys() & flags.keys() & {"environment", "directives"}:  # these add lines; later ones win
        options[name] = f"{of_site[name]}\n{flags[name]}"
    if not words:
        raise InputError("command: expected lsam submit [options] -- lsam train ..., found none")
    system = options.pop("system", None) or _installed_system()
    if system not in SYSTEMS:
        raise InputError(f"--system: expected one of {', '.join(SYSTEMS)}, found {system!r}")
    if options.get("gpus_per_node") and "ranks_per_node" not in options:
        options["ranks_per_node"] = options["gpus_per_node"]
    options.setdefault("setup", f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH")
    own_launch = options.pop("launch", None)
    about = " ".join(["Made by:", shlex.join(["lsam", "submit", *argv])])
    training = list(words[:2]) == ["lsam", "train"] or list(words[1:4]) == ["-m", "lsam_hpc", "train"]
    command, out = _command(words, options, training=training)
    job = Job(command=command, out=out, about=about, **options)
    try:
        check(job, system)
    except InputError as error:
        name = str(error).partition(":")[0].removeprefix("--").replace("-", "_")
        if name in of_site.keys() - flags.keys():
            raise InputError(f"{site}: {error}") from error
        raise
    if training:
        _check_chains(words, job)
    if own_launch is None:
        launch = job.filled(_launcher(system))
        if job.select is not None and "mpiprocs=" not in job.select and "PBS_NODEFILE" in launch:
            raise InputError(f"--select: expected mpiprocs=RANKS in it, or --launch, found {job.select!r}")
    else:
        launch = shlex.join(_split("--launch", job.filled(own_launch)))
    return system, dataclasses.replace(job, launch=launch), dry_run


def _arguments(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the flags that are given, and the words of the command."""
    parser = Parser(
        prog="lsam submit",
        allow_abbrev=False,
        usage="lsam submit [options] -- lsam train ...",
        description="Write a batch script for a command that runs on every rank, and submit it.",
    )
    parser.add_argument(
        "--site",
        metavar="NAME|FILE",
        help="a centre, or a TOML or YAML file with options named as here; flags win; list: print the known centres",
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
    return vars(known), argv[split + 1 :]


def _command(words: Sequence[str], options: dict[str, Any], *, training: bool) -> tuple[str, str | None]:
    """Return the command as shell text, and the run directory that it names.

    A training run without --out gets its own directory, and resumes there.
    """
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


def _check_chains(words: Sequence[str], job: Job) -> None:
    """Raise InputError if the chains of a training run do not fit its ranks, and warn if they do not fit its nodes."""
    sizes = re.findall(r"(?<!\S)--group-size[= ]([1-9]\d*)(?!\S)", " ".join(words))
    size = int(sizes[-1]) if sizes else 1
    if job.ranks % size:
        where = f"--nodes {job.nodes} with --ranks-per-node {job.ranks_per_node}"
        raise InputError(f"--group-size: expected a divisor of the {job.ranks} ranks ({where}), found {size}")
    if job.ranks_per_node % size:
        _LOG.warning(
            "--group-size %d: chains span nodes of %d ranks, so that every step communicates between nodes; a divisor "
            "of %d keeps each chain inside a node",
            size,
            job.ranks_per_node,
            job.ranks_per_node,
        )


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
