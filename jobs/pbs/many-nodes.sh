#!/bin/bash
# Several nodes with GPUs: one chain per GPU.
#
#   qsub jobs/pbs/many-nodes.sh
#
# >>> edit from here >>>
#PBS -N lsam
#PBS -l select=4:ncpus=32:mpiprocs=4:ngpus=4
# each part on a node of its own:
#PBS -l place=scatter
#PBS -l walltime=04:00:00
##PBS -q QUEUE
##PBS -A PROJECT
# one file of output a job: NAME.oID:
#PBS -j oe
# PBS may start it again after preemption:
#PBS -r y

setup() { # has python, lsam and their MPI found
  # module load gcc openmpi
  source .venv/bin/activate
}
# The network, where the defaults are not good: docs/clusters.md.
# export FI_PROVIDER=cxi                       # libfabric: cxi is Slingshot, verbs InfiniBand, tcp Ethernet
# export FI_CXI_RX_MATCH_MODE=hybrid           # Slingshot: go on in software when the card's match list is full
# export OMPI_MCA_osc_rdma_buffer_size=4194304 # Open MPI over TCP: adds to a window are 50 times faster
# export NCCL_SOCKET_IFNAME=hsn                # NCCL (--group-size above 1 on GPUs): the fast network's devices
out=${LSAM_OUT:-runs/$PBS_JOBNAME-${PBS_JOBID%%.*}}
launch=(mpirun -n "$(grep -c . "$PBS_NODEFILE")" --hostfile "$PBS_NODEFILE" -x PATH -x LD_LIBRARY_PATH -x OMP_NUM_THREADS)
# MPICH, Intel: launch=(mpiexec -n "$(grep -c . "$PBS_NODEFILE")" -f "$PBS_NODEFILE"). Others: docs/clusters.md.
command=(lsam train --data cifar10 --data-dir data --epochs 200 --out "$out" --resume auto)
requeues=3 # how often the job starts again at most, after it was stopped or killed
# <<< to here <<<

# A trap waits for what runs in the foreground, so the ranks run in the background. They are told once: a second signal
# would end them at once.
told="" cancelled=""
tell() { [ -n "$told" ] || [ -z "${ranks:-}" ] || kill -USR1 "$ranks"; told=1; }
trap 'again=1; tell' USR1
trap 'again=1; cancelled=1' TERM

cd "$PBS_O_WORKDIR" || exit 2
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
    if [ -z "$cancelled" ] && [ ${LSAM_ATTEMPT:-0} -lt "$requeues" ]; then
      echo "code $code at $(date +%FT%T): the job starts again" >&2
      qsub -v "LSAM_ATTEMPT=$((${LSAM_ATTEMPT:-0} + 1)),LSAM_OUT=$out" < "$0"
    fi
    ;;
esac
exit "$code"
