#!/bin/bash
# A run longer than the queue's time limit: several jobs of one name, each of which resumes runs/NAME
# where the job before it stopped. When the run is done, the remaining jobs end at once.
#
#   first=$(qsub jobs/pbs/chained.sh); qsub -W depend=afterany:$first jobs/pbs/chained.sh
#
# >>> edit from here >>>
#PBS -N lsam
#PBS -l select=1:ncpus=16:mpiprocs=4
# one chunk per node:
#PBS -l place=scatter
#PBS -l walltime=01:00:00
##PBS -q QUEUE
##PBS -A PROJECT
# one output file per job: NAME.oID:
#PBS -j oe
# PBS may restart the job after preemption:
#PBS -r y

setup() { # puts python, lsam and MPI on the PATH
  # module load gcc openmpi
  source .venv/bin/activate
}
out=runs/$PBS_JOBNAME
launch=(mpirun -n "$(grep -c . "$PBS_NODEFILE")" --hostfile "$PBS_NODEFILE" -x PATH -x LD_LIBRARY_PATH -x OMP_NUM_THREADS)
# MPICH, Intel: launch=(mpiexec -n "$(grep -c . "$PBS_NODEFILE")" -f "$PBS_NODEFILE"). Others: docs/clusters.md.
command=(lsam train --data digits --out "$out" --resume auto)
requeues=0 # maximum number of restarts after the job was stopped or killed
# <<< to here <<<

# bash runs a trap only after the foreground command ends, so the ranks run in the background. USR1 is forwarded once:
# a second signal would end the ranks without a checkpoint.
forwarded="" cancelled=""
forward() { [ -n "$forwarded" ] || [ -z "${ranks:-}" ] || kill -USR1 "$ranks"; forwarded=1; }
trap 'interrupted=1; forward' USR1
trap 'interrupted=1; cancelled=1' TERM

cd "$PBS_O_WORKDIR" || exit 2
setup || { echo "setup failed" >&2; exit 2; }
export OMP_NUM_THREADS=4
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
    if [ -z "$cancelled" ] && [ ${LSAM_ATTEMPT:-0} -lt "$requeues" ]; then
      echo "code $code at $(date +%FT%T): restarting the job" >&2
      qsub -v "LSAM_ATTEMPT=$((${LSAM_ATTEMPT:-0} + 1)),LSAM_OUT=$out" < "$0"
    fi
    ;;
esac
exit "$code"
