#!/bin/bash
# One node without GPUs: one chain per rank.
#
#   sbatch jobs/slurm/cpu-node.sh
#
# >>> edit from here >>>
#SBATCH --job-name=lsam
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4                  # ranks
#SBATCH --cpus-per-task=4                    # one is for the exchange thread
#SBATCH --time=01:00:00
##SBATCH --partition=NAME
##SBATCH --account=NAME
#SBATCH --output=%x-%j.out                   # one file per job
#SBATCH --open-mode=append                   # a restart appends
#SBATCH --signal=B:USR1@300                  # signal this script that many seconds before the time limit

setup() { # puts python, lsam and MPI on the PATH
  # module load gcc openmpi
  source .venv/bin/activate
}
out=runs/$SLURM_JOB_NAME-$SLURM_JOB_ID
launch=(srun --mpi=pmix --cpu-bind=cores)
# MPICH, Intel: launch=(srun --mpi=pmi2 --cpu-bind=cores). Others: docs/clusters.md.
command=(lsam train --data digits --out "$out" --resume auto)
requeues=0 # maximum number of restarts after the job was stopped or killed
# <<< to here <<<

# bash runs a trap only after the foreground command ends, so the ranks run in the background. USR1 is forwarded once:
# a second signal would end the ranks without a checkpoint.
forwarded="" cancelled=""
forward() { [ -n "$forwarded" ] || [ -z "${ranks:-}" ] || kill -USR1 "$ranks"; forwarded=1; }
trap 'interrupted=1; forward' USR1
trap 'interrupted=1; cancelled=1' TERM

setup || { echo "setup failed" >&2; exit 2; }
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not inherit it from sbatch
"${launch[@]}" "${command[@]}" &
ranks=$!
interrupted=1
while [ -n "$interrupted" ]; do
  interrupted=""
  wait "$ranks" # a signal interrupts wait, not the ranks
  code=$?
done

# Do not restart after 0 (done), 1 and 2 (permanent errors) and 4 (done, but some ranks failed). Restart after all other
# codes: 3 (stopped after a checkpoint), above 128 (killed), and those of a launcher that lost a node.
case $code in
  0 | 1 | 2 | 4) ;;
  *)
    if [ -z "$cancelled" ] && [ ${SLURM_RESTART_COUNT:-0} -lt "$requeues" ]; then
      echo "code $code at $(date +%FT%T): restarting the job" >&2
      scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit "$code"
