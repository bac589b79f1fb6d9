"""Batch scripts for Slurm."""

from __future__ import annotations

from lsam_hpc.launch.templates_job import Job, directives

_PACK = """\
# Ranks that import torch from a shared file system open thousands of small files each. To avoid this, an archive of the
# environment, made by `tar -C .venv -cf env.tar .`, is unpacked on each node. Empty: use the shared environment.
pack={0}
disk={1} # a node-local folder"""

_NEAR_END = """\
near_end() { # less than a minute is left: then TERM is from the time limit
  case $(squeue -h -j "$SLURM_JOB_ID" -o %L) in 0:* | INVALID) ;; *) false ;; esac
}"""


class Slurm:
    """The Slurm parts of a script: see `templates.System`."""

    file = "sbatch"
    submit: tuple[str, ...] = ("sbatch", "--parsable")
    openmpi = "srun --mpi=pmix --cpu-bind=cores"
    mpich = "srun --mpi=pmi2 --cpu-bind=cores"
    cray = "srun --cpu-bind=cores"
    index = "$SLURM_ARRAY_TASK_ID"
    attempts = "${SLURM_RESTART_COUNT:-0}"
    near_end = _NEAR_END
    signals_ranks = False
    pack = _PACK
    chained = "sbatch {0} # submit several times: jobs of the same name run one after another"

    def header(self, job: Job) -> list[str]:
        """Return the directives."""
        per = "one rank per GPU" if job.gpus_per_node else "ranks"
        output = "%x-%A-%a.out" if job.sweep else "%x-%j.out"
        options = [
            (f"--job-name={job.name}", ""),
            (f"--nodes={job.nodes}", ""),
            (f"--ntasks-per-node={job.ranks_per_node}", per),
            (f"--cpus-per-task={job.cpus_per_rank}", "one is for the exchange thread"),
        ]
        if job.gpus is not None:
            options += [(line.strip(), "") for line in job.filled(job.gpus).splitlines() if line.strip()]
        elif job.gpus_per_node:
            options += [
                (f"--gpus-per-node={job.gpus_per_node}", ""),
                ("--gpu-bind=none", "each rank sees all GPUs of its node, and uses the one next to its cores"),
            ]
        options += [
            (f"--time={job.time}", ""),
            (f"--partition={job.partition}" if job.partition else "#--partition=NAME", ""),
            (f"--account={job.account}" if job.account else "#--account=NAME", ""),
            *((f"--{name}={value}", "") for name, value in self._optional(job) if value),
            *([("--exclusive", "whole nodes")] if job.exclusive else []),
            (f"--output={output}", "one file per job"),
            ("--open-mode=append", "a restart appends"),
            (f"--signal=B:USR1@{job.warn}", "signal this script that many seconds before the time limit"),
        ]
        if job.values:
            options.append((f"--array=0-{len(job.values) - 1}", "one element per value below"))
        if job.requeue:
            options.append(("--requeue", "restart after preemption and when a node fails"))
        if job.chain > 1:
            options.append(("--dependency=singleton", "one job of this name at a time"))
        return directives("#SBATCH", options, job.directives, beside=True)

    def _optional(self, job: Job) -> list[tuple[str, str | None]]:
        """Return the directives that have no default, with values quoted where sbatch would split them."""
        constraint = f'"{job.constraint}"' if job.constraint and not job.constraint.isalnum() else job.constraint
        return [("qos", job.qos), ("constraint", constraint), ("mem", job.mem), ("uenv", job.uenv), ("view", job.view)]

    def out(self, job: Job) -> str:
        """Return the run directory."""
        if job.values:
            return "runs/$SLURM_JOB_NAME-$SLURM_ARRAY_JOB_ID-$SLURM_ARRAY_TASK_ID"
        return "runs/$SLURM_JOB_NAME" if job.chain > 1 else "runs/$SLURM_JOB_NAME-$SLURM_JOB_ID"

    def begin(self, job: Job) -> list[str]:
        """Return the commands before the ranks start."""
        lines = [
            'setup || { echo "setup failed" >&2; exit 2; }',
            'if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then # else the ranks of a node share its cores',
            "  export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK",
            "  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not inherit it from sbatch",
            "fi",
        ]
        if job.pack is not None:
            lines += [
                'if [ -n "$pack" ]; then',
                "  disk=$disk/lsam-$SLURM_JOB_ID",
                '  case $disk in /*) ;; *) echo "--disk: expected an absolute path, found $disk" >&2; exit 2 ;; esac',
                '  everywhere=(srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1)',
                '  trap \'"${everywhere[@]}" rm -rf "$disk" "$disk.tar"\' EXIT',
                '  sbcast --force "$pack" "$disk.tar" && "${everywhere[@]}" mkdir -p "$disk" &&',
                '    "${everywhere[@]}" tar -xf "$disk.tar" -C "$disk" || exit 2',
                "  export PATH=$disk/bin:$PATH",
                "fi",
            ]
        return lines

    def again(self, job: Job) -> str:
        """Return the command that restarts the job."""
        return 'scontrol requeue "$SLURM_JOB_ID"'

    def after(self, previous: str) -> list[str]:
        """Return no options: the script's --dependency=singleton makes jobs of a chain wait for each other."""
        return []
