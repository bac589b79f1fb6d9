#!/bin/bash
# One node with GPUs: one chain per GPU.
#
#   bsub < jobs/lsf/gpu-node.sh
#
# >>> edit from here >>>
#BSUB -J "lsam"
# number of ranks:
#BSUB -n 4
# ranks per node:
#BSUB -R "span[ptile=4]"
# one is for the exchange thread:
#BSUB -R "affinity[core(8)]"
# GPUs per node; rank i of a node uses GPU i:
#BSUB -gpu "num=4:mode=shared"
# hours:minutes:
#BSUB -W 04:00
##BSUB -q QUEUE
##BSUB -P PROJECT
# a restart appends:
#BSUB -o lsam-%J.out
# signal this many minutes before the time limit:
#BSUB -wa USR1 -wt 5

setup() { # puts python, lsam and MPI on the PATH
  # module load gcc openmpi
  source .venv/bin/activate
}
out=runs/$LSB_JOBNAME-$LSB_JOBID
launch=(mpirun -n "$LSB_DJOB_NUMPROC" --hostfile "$LSB_DJOB_HOSTFILE" -x PATH -x LD_LIBRARY_PATH -x OMP_NUM_THREADS)
# MPICH, Intel: launch=(mpiexec -n "$LSB_DJOB_NUMPROC" -f "$LSB_DJOB_HOSTFILE"). Others: docs/clusters.md.
command=(lsam train --data cifar10 --data-dir data --epochs 200 --out "$out" --resume auto)
requeues=0 # maximum number of restarts after the job was stopped or killed
# <<< to here <<<

# bash runs a trap only after the foreground command ends, so the ranks run in the background. USR1 is forwarded once:
# a second signal would end the ranks without a checkpoint.
forwarded="" cancelled=""
forward() { [ -n "$forwarded" ] || [ -z "${ranks:-}" ] || kill -USR1 "$ranks"; forwarded=1; }
trap 'interrupted=1; forward' USR1
trap 'interrupted=1; cancelled=1' TERM

setup || { echo "setup failed" >&2; exit 2; }
export OMP_NUM_THREADS=8
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
    if [ -z "$cancelled" ] && [ $(cat "$out.attempts" 2> /dev/null | wc -l) -lt "$requeues" ]; then
      echo "code $code at $(date +%FT%T): restarting the job" >&2
      mkdir -p "$(dirname "$out")" && echo again >> "$out.attempts" && exit 99
    fi
    ;;
esac
exit "$code"
