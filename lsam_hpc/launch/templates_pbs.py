"""Batch scripts for PBS (OpenPBS, PBS Professional)."""

from __future__ import annotations

from lsam_hpc.launch.templates_job import Job, directives

_NEAR_END = """\
near_end() { # less than a minute is left: then TERM is from the time limit
  local h m s
  IFS=: read -r h m s < <(qstat -f "$PBS_JOBID" | sed -n 's/^ *Resource_List.walltime = //p')
  [ -n "$s" ] && ((SECONDS + 60 >= 10#$h * 3600 + 10#$m * 60 + 10#$s))
}"""


class Pbs:
    """The PBS parts of a script: see `templates.System`."""

    file = "qsub"
    submit: tuple[str, ...] = ("qsub",)
    openmpi = (
        'mpirun -n "$(grep -c . "$PBS_NODEFILE")" --hostfile "$PBS_NODEFILE" '
        "-x PATH -x LD_LIBRARY_PATH -x OMP_NUM_THREADS"
    )
    mpich = 'mpiexec -n "$(grep -c . "$PBS_NODEFILE")" -f "$PBS_NODEFILE"'
    cray = "mpiexec -n {ranks} --ppn {ranks_per_node} --depth {cpus_per_rank} --cpu-bind depth"  # PALS
    index = "$PBS_ARRAY_INDEX"
    chained = "first=$(qsub {0}); qsub -W depend=afterany:$first {0}"
    attempts = "${LSAM_ATTEMPT:-0}"
    near_end = _NEAR_END
    signals_ranks = False
    pack = ""

    def header(self, job: Job) -> list[str]:
        """Return the directives."""
        cpus = job.ranks_per_node * job.cpus_per_rank
        gpus = f":ngpus={job.gpus_per_node}" if job.gpus_per_node else ""
        node = f"ncpus={cpus}:mpiprocs={job.ranks_per_node}{gpus}" if job.select is None else job.select
        mem = f"mem={job.mem}" if job.mem else ""
        chunk = ":".join(word for word in (str(job.nodes), node, mem) if word)
        options = [
            (f"-N {job.name}", ""),
            (f"-l select={chunk}", ""),
            (f"-l place=scatter{':excl' if job.exclusive else ''}", "one chunk per node"),
            (f"-l walltime={job.hours}", ""),
            *([(f"-l filesystems={job.filesystems}", "")] if job.filesystems else []),
            (f"-q {job.partition}" if job.partition else "#-q QUEUE", ""),
            (f"-A {job.account}" if job.account else "#-A PROJECT", ""),
            ("-j oe", "one output file per job: NAME.oID"),
            ("-r y", "PBS may restart the job after preemption"),
        ]
        if job.values:
            options.append((f"-J 0-{len(job.values) - 1}", "one element per value below"))
        return directives("#PBS", options, job.directives)

    def out(self, job: Job) -> str:
        """Return the run directory; a restarted job uses that of the first job."""
        if job.values:
            return "runs/$PBS_JOBNAME-${PBS_ARRAY_ID%%[*}-$PBS_ARRAY_INDEX"
        return "runs/$PBS_JOBNAME" if job.chain > 1 else "${LSAM_OUT:-runs/$PBS_JOBNAME-${PBS_JOBID%%.*}}"

    def begin(self, job: Job) -> list[str]:
        """Return the commands before the ranks start."""
        return [
            'cd "$PBS_O_WORKDIR" || exit 2',
            'setup || { echo "setup failed" >&2; exit 2; }',
            f"export OMP_NUM_THREADS={job.cpus_per_rank}",
        ]

    def again(self, job: Job) -> str:
        """Return the command that restarts the job: it submits a copy, because only operators may call qrerun."""
        return f'qsub -v "LSAM_ATTEMPT=$(({self.attempts} + 1)),LSAM_OUT=$out" < "$0"'

    def after(self, previous: str) -> list[str]:
        """Return the options that make a job wait for the end of another."""
        return ["-W", f"depend=afterany:{previous}"]
