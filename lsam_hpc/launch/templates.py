"""Batch scripts, all made of the same parts: jobs/ holds the rendered ones, `lsam submit` renders more."""

from __future__ import annotations

import shlex
from typing import Protocol

from lsam_hpc.launch.templates_job import Job
from lsam_hpc.launch.templates_lsf import Lsf
from lsam_hpc.launch.templates_pbs import Pbs
from lsam_hpc.launch.templates_slurm import Slurm


class System(Protocol):
    """What batch systems differ in."""

    file: str  # what a file is submitted with
    submit: tuple[str, ...]  # the program that submits what is on its standard input, and prints the job's id
    chained: str  # how the jobs of a chain are submitted; {0}: the script
    openmpi: str  # what starts the ranks with Open MPI
    mpich: str  # and with MPICH or Intel MPI
    index: str  # which of a sweep's values is this element's
    attempts: str  # how often the job was started again
    pack: str  # what has an environment copied to the nodes, empty if nothing does; {0}: the archive, {1}: where to

    def header(self, job: Job) -> list[str]:
        """Return the scheduler's options."""
        ...

    def out(self, job: Job) -> str:
        """Return the run directory."""
        ...

    def begin(self, job: Job) -> list[str]:
        """Return what is done before the ranks start."""
        ...

    def again(self, job: Job) -> str:
        """Return the command that has the job started again."""
        ...

    def after(self, previous: str) -> list[str]:
        """Return the options that have a job wait for the end of another."""
        ...


SYSTEMS: dict[str, System] = {"slurm": Slurm(), "pbs": Pbs(), "lsf": Lsf()}

_NETWORK = """\
# The network, where the defaults are not good: docs/clusters.md.
# export FI_PROVIDER=cxi                       # libfabric: cxi is Slingshot, verbs InfiniBand, tcp Ethernet
# export FI_CXI_RX_MATCH_MODE=hybrid           # Slingshot: go on in software when the card's match list is full
# export OMPI_MCA_osc_rdma_buffer_size=4194304 # Open MPI over TCP: adds to a window are 50 times faster
# export NCCL_SOCKET_IFNAME=hsn                # NCCL (--group-size above 1 on GPUs): the fast network's devices"""
_BODY = """\
# A trap waits for what runs in the foreground, so the ranks run in the background. They are told once: a second signal
# would end them at once.
told="" cancelled=""
tell() {{ [ -n "$told" ] || [ -z "${{ranks:-}}" ] || kill -USR1 "$ranks"; told=1; }}
trap 'again=1; tell' USR1
trap 'again=1; cancelled=1' TERM

{begin}
"${{launch[@]}}" "${{command[@]}}" &
ranks=$!
again=1
while [ -n "$again" ]; do
  again=""
  wait "$ranks" # a signal ends this wait, not the ranks
  code=$?
done

# 0: done; 1 and 2: what is wrong would be so again; 4: done, without some ranks. All else goes on from the last
# checkpoint: 3, stopped after one; above 128, killed; and what the launcher makes of a lost node.
case $code in
  0 | 1 | 2 | 4) ;;
  *)
    if [ -z "$cancelled" ] && [ {attempts} -lt "$requeues" ]; then
      echo "code $code at $(date +%FT%T): the job starts again" >&2
      {again}
    fi
    ;;
esac
exit "$code"
"""


def render(job: Job, system: str, path: str | None = None) -> str:
    """Return a batch script.

    Args:
        job: what it is for.
        system: slurm, pbs or lsf.
        path: where the script will be, for its first lines.
    """
    batch = SYSTEMS[system]
    lines = ["#!/bin/bash", *(f"# {line}" for line in job.about.splitlines()), "#"]
    if path is not None:
        lines += [f"#   {batch.chained.format(path) if job.chain > 1 else f'{batch.file} {path}'}", "#"]
    setup = [line.strip() for line in job.setup.splitlines() if line.strip()]
    lines += ["# >>> edit from here >>>", *batch.header(job), ""]
    lines += ["setup() { # has python, lsam and their MPI found", *(f"  {line}" for line in setup or [":"]), "}"]
    variables = [word.strip() for word in job.environment.splitlines() if word.strip()]
    for name, _, value in (word.partition("=") for word in variables):
        lines.append(f"export {name}={shlex.quote(value)}")
    if job.nodes > 1 and not variables:
        lines += _NETWORK.splitlines()
    lines += [f"out={batch.out(job)}"]
    command = job.command
    if job.sweep is not None:
        option = job.sweep.partition("=")[0].replace("_", "-")
        lines += [f"values=({shlex.join(job.values)})", f"value=${{values[{batch.index}]}}"]
        command += f' --{option} "$value"'
    lines += [f"launch=({job.launch or batch.openmpi})"]
    if not job.launch:
        lines += [f"# MPICH, Intel: launch=({batch.mpich}). Others: docs/clusters.md."]
    lines += [f"command=({command})"]
    if job.pack is not None:
        lines += batch.pack.format(shlex.quote(job.pack), shlex.quote(job.disk)).splitlines()
    lines += [f"requeues={job.requeue} # how often the job starts again at most, after it was stopped or killed"]
    lines += ["# <<< to here <<<", "", ""]
    begin = "\n".join(batch.begin(job))
    return "\n".join(lines) + _BODY.format(begin=begin, attempts=batch.attempts, again=batch.again(job))
