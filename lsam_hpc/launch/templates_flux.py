"""Batch scripts for Flux: a batch job is an instance of Flux of its own, in which `flux run` starts the ranks.

Flux has no arrays of jobs and no requeue. It signals the ranks itself, not through `flux run`.
"""

from __future__ import annotations

from lsam_hpc.launch.templates_job import Job, directives

_NEAR_END = """\
near_end() { # less than a minute is left: then TERM is from the time limit
  local left
  left=$(flux job timeleft) && [ "${left:-60}" -lt 60 ]
}"""
_RUN = "flux run --nodes={nodes} --tasks-per-node={ranks_per_node} --exclusive -o cpu-affinity=per-task"


class Flux:
    """The Flux parts of a script: see `templates.System`."""

    file = "flux batch"
    submit: tuple[str, ...] = ("flux", "batch")
    openmpi = f"{_RUN} -o pmi=pmix"
    mpich = _RUN
    cray = _RUN
    index = ""
    chained = "first=$(flux batch {0}); flux batch --dependency=afterany:$first {0}"
    attempts = "${LSAM_ATTEMPT:-0}"
    near_end = _NEAR_END
    signals_ranks = True
    pack = ""

    def header(self, job: Job) -> list[str]:
        """Return the directives; a slot stands for what the job needs of a node."""
        options = [(f"--job-name={job.name}", ""), (f"--nodes={job.nodes}", "")]
        if job.exclusive:
            options.append(("--exclusive", "whole nodes"))
        else:
            options += [
                (f"--nslots={job.nodes}", "one for each node"),
                (
                    f"--cores-per-slot={job.ranks_per_node * job.cpus_per_rank}",
                    "one of a rank is for its exchange thread",
                ),
                *([(f"--gpus-per-slot={job.gpus_per_node}", "")] if job.gpus_per_node else []),
            ]
        options += [
            (f"--time-limit={job.seconds}s", ""),
            (f"--queue={job.partition}" if job.partition else "#--queue=NAME", ""),
            (f"--setattr=bank={job.account}" if job.account else "#--setattr=bank=NAME", ""),
            (f"--output={job.name}-{{{{id}}}}.out", "one file per job"),
            (f"--signal=USR1@{job.warn}s", "signal the ranks that many seconds before the time limit"),
        ]
        return directives("#flux:", options, job.directives, beside=True, sentinel=True)

    def out(self, job: Job) -> str:
        """Return the run directory; a restarted job uses that of the first job."""
        if job.chain > 1:
            return f"runs/{job.name}"
        return f'${{LSAM_OUT:-runs/{job.name}-$(flux job id "$(flux getattr jobid)")}}'

    def begin(self, job: Job) -> list[str]:
        """Return the commands before the ranks start."""
        return ['setup || { echo "setup failed" >&2; exit 2; }', f"export OMP_NUM_THREADS={job.cpus_per_rank}"]

    def again(self, job: Job) -> str:
        """Return the command that restarts the job: it submits a copy to the instance that runs this job."""
        return f'LSAM_ATTEMPT=$(({self.attempts} + 1)) LSAM_OUT=$out flux --parent batch "$0"'

    def after(self, previous: str) -> list[str]:
        """Return the options that make a job wait for the end of another."""
        return [f"--dependency=afterany:{previous}"]
