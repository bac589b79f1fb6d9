#!/bin/bash
# Several nodes with GPUs: one chain per GPU.
#
#   bsub < jobs/lsf/many-nodes.sh
#
# >>> edit from here >>>
#BSUB -J "lsam"
# ranks:
#BSUB -n 16
# of them on a node:
#BSUB -R "span[ptile=4]"
# the chain's, and one for its exchange thread:
#BSUB -R "affinity[core(8)]"
# a node's; a rank takes that of its number:
#BSUB -gpu "num=4:mode=shared"
# hours:minutes:
#BSUB -W 04:00
##BSUB -q QUEUE
##BSUB -P PROJECT
# appended to when the job starts again:
#BSUB -o lsam-%J.out
# so many minutes before its end the job is told:
#BSUB -wa USR1 -wt 5
# LSF starts it again when a node is lost:
#BSUB -r
# and after this exit code:
#BSUB -Q "99"

setup() { # has python, lsam and their MPI found
  # module load gcc openmpi
  source .venv/bin/activate
}
# The network, where the defaults are not good: docs/clusters.md.
# export FI_PROVIDER=cxi                       # libfabric: cxi is Slingshot, verbs InfiniBand, tcp Ethernet
# export FI_CXI_RX_MATCH_MODE=hybrid           # Slingshot: go on in software when the card's match list is full
# export OMPI_MCA_osc_rdma_buffer_size=4194304 # Open MPI over TCP: adds to a window are 50 times faster
# export NCCL_SOCKET_IFNAME=hsn                # NCCL (--group-size above 1 on GPUs): the fast network's devices
out=runs/$LSB_JOBNAME-$LSB_JOBID
launch=(mpirun -n "$LSB_DJOB_NUMPROC" --hostfile "$LSB_DJOB_HOSTFILE" -x PATH -x LD_LIBRARY_PATH -x OMP_NUM_THREADS)
# MPICH, Intel: launch=(mpiexec -n "$LSB_DJOB_NUMPROC" -f "$LSB_DJOB_HOSTFILE"). Others: docs/clusters.md.
command=(lsam train --data cifar10 --data-dir data --epochs 200 --out "$out" --resume auto)
requeues=3 # how often the job starts again at most, after it was stopped or killed
# <<< to here <<<

# A trap waits for what runs in the foreground, so the ranks run in the background. They are told once: a second signal
# would end them at once.
told="" cancelled=""
tell() { [ -n "$told" ] || [ -z "${ranks:-}" ] || kill -USR1 "$ranks"; told=1; }
trap 'again=1; tell' USR1
trap 'again=1; cancelled=1' TERM

setup || { echo "setup failed" >&2; exit 2; }
export OMP_NUM_THREADS=8
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
    if [ -z "$cancelled" ] && [ $(cat "$out.attempts" 2> /dev/null | wc -l) -lt "$requeues" ]; then
      echo "code $code at $(date +%FT%T): the job starts again" >&2
      mkdir -p "$(dirname "$out")" && echo again >> "$out.attempts" && exit 99
    fi
    ;;
esac
exit "$code"
