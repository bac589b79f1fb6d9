"""Batch scripts for LSF."""

from __future__ import annotations

from lsam_hpc.launch.templates_job import Job, directives

_NEAR_END = """\
near_end() { # less than two minutes are left: then TERM is from the time limit
  case $(bjobs -noheader -o time_left "$LSB_JOBID") in 0:[01]\\ * | 0:0[01]\\ *) ;; *) false ;; esac
}"""


class Lsf:
    """The LSF parts of a script: see `templates.System`."""

    file = "bsub <"
    submit: tuple[str, ...] = ("bsub",)
    openmpi = (
        'mpirun -n "$LSB_DJOB_NUMPROC" --hostfile "$LSB_DJOB_HOSTFILE" -x PATH -x LD_LIBRARY_PATH -x OMP_NUM_THREADS'
    )
    mpich = 'mpiexec -n "$LSB_DJOB_NUMPROC" -f "$LSB_DJOB_HOSTFILE"'
    cray = mpich  # no Cray has LSF
    index = "$((LSB_JOBINDEX - 1))"
    chained = "bsub < {0}; bsub -w 'ended(lsam)' < {0}"
    attempts = '$(cat "$out.attempts" 2> /dev/null | wc -l)'
    near_end = _NEAR_END
    signals_ranks = False
    pack = ""

    def header(self, job: Job) -> list[str]:
        """Return the directives."""
        minutes = max(1, job.warn // 60)
        array = f"[1-{len(job.values)}]" if job.values else ""
        options = [
            (f'-J "{job.name}{array}"', "one element per value below" if array else ""),
            (f"-n {job.ranks}", "number of ranks"),
            (f'-R "span[ptile={job.ranks_per_node}]"', "ranks per node"),
            (f'-R "affinity[core({job.cpus_per_rank})]"', "one is for the exchange thread"),
        ]
        if job.gpus_per_node:
            options.append(
                (f'-gpu "num={job.gpus_per_node}:mode=shared"', "GPUs per node; a rank uses the one next to its cores")
            )
        options += [
            (f"-W {job.hours.rpartition(':')[0]}", "hours:minutes"),
            (f"-q {self._queues(job.partition)}" if job.partition else "#-q QUEUE", ""),
            (f"-P {job.account}" if job.account else "#-P PROJECT", ""),
            (f"-o {job.name}-%J{'-%I' if array else ''}.out", "a restart appends"),
            (f"-wa USR1 -wt {minutes}", "signal this many minutes before the time limit"),
        ]
        if job.exclusive:
            options.append(("-x", "whole nodes"))
        if job.requeue:
            options += [("-r", "restart when a node fails"), ('-Q "99"', "restart after this exit code")]
        return directives("#BSUB", options, job.directives)

    def _queues(self, partition: str) -> str:
        """Return the queues as bsub reads them."""
        return f'"{partition.replace(",", " ")}"' if "," in partition else partition

    def out(self, job: Job) -> str:
        """Return the run directory."""
        if job.values:
            return "runs/${LSB_JOBNAME%%[*}-$LSB_JOBID-$LSB_JOBINDEX"
        return "runs/$LSB_JOBNAME" if job.chain > 1 else "runs/$LSB_JOBNAME-$LSB_JOBID"

    def begin(self, job: Job) -> list[str]:
        """Return the commands before the ranks start."""
        return ['setup || { echo "setup failed" >&2; exit 2; }', f"export OMP_NUM_THREADS={job.cpus_per_rank}"]

    def again(self, job: Job) -> str:
        """Return the command that restarts the job: it exits with the code of -Q."""
        return 'mkdir -p "$(dirname "$out")" && echo again >> "$out.attempts" && exit 99'

    def after(self, previous: str) -> list[str]:
        """Return the options that make a job wait for the end of another."""
        return ["-w", f"ended({previous})"]
