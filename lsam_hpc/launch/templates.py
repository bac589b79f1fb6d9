"""Templates of batch scripts, for the scripts in jobs/ and for `lsam submit`."""

from __future__ import annotations

import shlex
from typing import Protocol

from lsam_hpc.launch.templates_flux import Flux
from lsam_hpc.launch.templates_job import Job, expanding
from lsam_hpc.launch.templates_lsf import Lsf
from lsam_hpc.launch.templates_pbs import Pbs
from lsam_hpc.launch.templates_slurm import Slurm


class System(Protocol):
    """The parts of a script in which batch systems differ."""

    file: str  # command that submits a file
    submit: tuple[str, ...]  # command that submits its standard input and prints the job's id
    chained: str  # command that submits a chain of jobs; {0}: the script
    openmpi: str  # launcher for Open MPI
    mpich: str  # launcher for MPICH and Intel MPI
    cray: str  # launcher for Cray MPICH; Job.filled fills all three
    index: str  # index of an array element, from 0; empty: no arrays
    attempts: str  # number of restarts so far
    near_end: str  # shell function: whether the time limit is so near that TERM is due to it, not to a cancellation
    signals_ranks: bool  # the system signals the ranks; False: the script forwards its signal to the launcher
    pack: str  # settings for copying an environment to the nodes, empty if unsupported; {0}: archive, {1}: folder

    def header(self, job: Job) -> list[str]:
        """Return the directives."""
        ...

    def out(self, job: Job) -> str:
        """Return the run directory."""
        ...

    def begin(self, job: Job) -> list[str]:
        """Return the commands before the ranks start."""
        ...

    def again(self, job: Job) -> str:
        """Return the command that restarts the job."""
        ...

    def after(self, previous: str) -> list[str]:
        """Return the options that make a job wait for the end of another."""
        ...


SYSTEMS: dict[str, System] = {"slurm": Slurm(), "pbs": Pbs(), "lsf": Lsf(), "flux": Flux()}

_NETWORK = """\
# Network settings, for networks with bad defaults: docs/reference/launchers.md.
# export FI_PROVIDER=cxi                       # libfabric: cxi is Slingshot, verbs InfiniBand, tcp Ethernet
# export FI_CXI_RX_MATCH_MODE=hybrid           # Slingshot: match in software when the card's list is full
# export OMPI_MCA_osc_rdma_buffer_size=4194304 # Open MPI over TCP: adds to a window are 50 times faster
# export NCCL_SOCKET_IFNAME=hsn                # NCCL (--group-size above 1 on GPUs): devices of the fast network"""
_FORWARDED = """\
USR1 is forwarded once:
# a second signal would end the ranks without a checkpoint."""
_FORWARD = '[ -n "$forwarded" ] || [ -z "${ranks:-}" ] || kill -USR1 "$ranks"; '
_SIGNALLED = """\
The batch system
# signals them itself; a signal would end the launcher only."""
_BODY = """\
# bash runs a trap only after the foreground command ends, so the ranks run in the background. {who_signals}
forwarded="" terminated="" cancelled=""
forward() {{ {forward}forwarded=1; }}
trap 'interrupted=1; forward' USR1
trap 'interrupted=1; terminated=1' TERM
{near_end}
told_to_end() {{ # by the batch system or the user
  if [ -n "$terminated" ]; then
    terminated=""
    near_end || cancelled=1
  fi
  [ -n "$forwarded$cancelled" ]
}}

{begin}
# A launcher may return 0 although no rank started. A training run is done only when its run directory says so.
case " ${{command[*]}} " in
  *" lsam train"*" --out $out "* | *" lsam_hpc train"*" --out $out "*) trains=1 ;;
  *) trains="" ;; # other commands are judged by their exit code
esac
file_id() {{ ls -li --time-style=full-iso "$1" 2> /dev/null; }}
finished() {{ # the newest manifest says that the budget is spent; without checkpoints: this launch wrote the center
  local sets=("$out"/checkpoints/set-*.json)
  grep -qs '^ "finished": true' "${{sets[@]: -1}}" || [ "$(file_id "$out/checkpoints/center.pt")" != "$center" ]
}}
why_unfinished() {{ # says why the launch failed, if it did
  case ${{trains:-other}}-$code in
    other-* | 1-2 | 1-3 | 1-4) return ;; # the ranks themselves returned 2, 3 or 4
  esac
  if [ "$(file_id "$out/config.json")" = "$config" ]; then
    echo "no rank wrote $out/config.json, and the launcher returned $code"
  elif [ "$code" = 0 ] && ! finished; then
    echo "the launcher returned 0, but no manifest in $out/checkpoints says that the run is finished"
  fi
}}
launches=0
while :; do
  config=$(file_id "$out/config.json") center=$(file_id "$out/checkpoints/center.pt")
  "${{launch[@]}}" "${{command[@]}}" &
  ranks=$! launches=$((launches + 1)) interrupted=1
  while [ -n "$interrupted" ]; do
    interrupted=""
    wait "$ranks" # a signal interrupts wait, not the ranks
    code=$?
    [ "$code" -ge 0 ] || code=143 # bash 5.2 loses the code of a process that ends at the moment of a signal
    told_to_end
  done
  ranks="" why=$(why_unfinished)
  [ -z "$why" ] || echo "launch $launches: $why" >&2
  if [ -z "$why" ] || [ "$launches" -gt "$retries" ] || told_to_end; then break; fi
  sleep "$((launches * pause))" &
  wait $!
  if told_to_end; then break; fi
done
[ -z "$why" ] || [ "$code" != 0 ] || code=75
told_to_end

# Do not restart after 0 (done), 1 and 2 (permanent errors) and 4 (done, but some ranks failed). Restart after all other
# codes: 3 (stopped after a checkpoint), 75 (not done), above 128 (killed), and those of a launcher that lost a node.
case $code in
  0 | 1 | 2 | 4) ;;
  *)
    if [ -z "$cancelled" ] && [ "{attempts}" -lt "$requeues" ]; then
      echo "code $code at $(date +%FT%T): restarting the job" >&2
      {again}
    fi
    ;;
esac
exit "$code"
"""


def render(job: Job, system: str, path: str | None = None) -> str:
    """Return a batch script.

    Args:
        job: to be run.
        system: slurm, pbs, lsf or flux.
        path: of the script, for the submit command in its head. Default: no such line.
    """
    batch = SYSTEMS[system]
    lines = [f"#!/bin/bash{' -l' if job.modules else ''}", *(f"# {line}" for line in job.about.splitlines()), "#"]
    if path is not None:
        lines += [f"#   {batch.chained.format(path) if job.chain > 1 else f'{batch.file} {path}'}", "#"]
    setup = [f"module load {job.modules}"] if job.modules else []
    setup += [line.strip() for line in job.setup.splitlines() if line.strip()]
    lines += ["# >>> edit from here >>>", *batch.header(job), ""]
    lines += ["setup() { # puts python, lsam and MPI on the PATH", *(f"  {line}" for line in setup or [":"]), "}"]
    variables = [word.strip() for word in job.environment.splitlines() if word.strip()]
    for name, _, value in (word.partition("=") for word in variables):
        lines.append(f"export {name}={shlex.quote(value)}")
    if job.nodes > 1 and not variables:
        lines += _NETWORK.splitlines()
    lines += [f"out={batch.out(job) if job.out is None else shlex.quote(job.out)}"]
    command = job.command
    if job.sweep is not None:
        option = job.sweep.partition("=")[0].replace("_", "-")
        lines += [f"values=({shlex.join(job.values)})", f"value=${{values[{batch.index}]}}"]
        command += f' --{option} "$value"'
    lines += [f"launch=({job.launch or job.filled(batch.openmpi)})"]
    if not job.launch:
        lines += [f"# MPICH, Intel: launch=({job.filled(batch.mpich)}). Others: docs/howto/clusters.md."]
    lines += [f"command=({command})"]
    if job.pack is not None:
        lines += batch.pack.format(shlex.quote(job.pack), expanding(job.disk)).splitlines()
    lines += [f"requeues={job.requeue} # maximum number of restarts after the job was stopped or killed"]
    lines += ["retries=3 pause=10 # further launches after one that failed, and seconds before the first of them"]
    lines += ["# <<< to here <<<", "", ""]
    begin = "\n".join(batch.begin(job))
    return "\n".join(lines) + _BODY.format(
        near_end=batch.near_end,
        begin=begin,
        attempts=batch.attempts,
        again=batch.again(job),
        who_signals=_SIGNALLED if batch.signals_ranks else _FORWARDED,
        forward="" if batch.signals_ranks else _FORWARD,
    )
