#!/bin/bash
# An array job: one run for each value of an option.
#
#   sbatch jobs/slurm/sweep.sh
#
# >>> edit from here >>>
#SBATCH --job-name=lsam
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4                  # ranks
#SBATCH --cpus-per-task=4                    # the chain's, and one for its exchange thread
#SBATCH --time=01:00:00
##SBATCH --partition=NAME
##SBATCH --account=NAME
#SBATCH --output=%x-%A-%a.out                # one file a job
#SBATCH --open-mode=append                   # also when it starts again
#SBATCH --signal=B:USR1@300                  # so many seconds before its end this script is told
#SBATCH --array=0-3                          # one element for each value below

setup() { # has python, lsam and their MPI found
  # module load gcc openmpi
  source .venv/bin/activate
}
out=runs/$SLURM_JOB_NAME-$SLURM_ARRAY_JOB_ID-$SLURM_ARRAY_TASK_ID
values=(0.01 0.02 0.05 0.1)
value=${values[$SLURM_ARRAY_TASK_ID]}
launch=(srun --mpi=pmix --cpu-bind=cores)
# MPICH, Intel: launch=(srun --mpi=pmi2 --cpu-bind=cores). Others: docs/clusters.md.
command=(lsam train --data digits --out "$out" --resume auto --rho "$value")
requeues=0 # how often the job starts again at most, after it was stopped or killed
# <<< to here <<<

# A trap waits for what runs in the foreground, so the ranks run in the background. They are told once: a second signal
# would end them at once.
told="" cancelled=""
tell() { [ -n "$told" ] || [ -z "${ranks:-}" ] || kill -USR1 "$ranks"; told=1; }
trap 'again=1; tell' USR1
trap 'again=1; cancelled=1' TERM

setup || { echo "setup failed" >&2; exit 2; }
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not take it over from sbatch by itself
"${launch[@]}" "${command[@]}" &
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
    if [ -z "$cancelled" ] && [ ${SLURM_RESTART_COUNT:-0} -lt "$requeues" ]; then
      echo "code $code at $(date +%FT%T): the job starts again" >&2
      scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit "$code"
