#!/bin/bash
# Several nodes with GPUs: one chain per GPU.
#
#   sbatch jobs/slurm/many-nodes.sh
#
# >>> edit from here >>>
#SBATCH --job-name=lsam
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=4                  # one rank per GPU
#SBATCH --cpus-per-task=8                    # the chain's, and one for its exchange thread
#SBATCH --gpus-per-node=4
#SBATCH --gpu-bind=none                      # each rank sees all of its node's and takes the one of its number
#SBATCH --time=04:00:00
##SBATCH --partition=NAME
##SBATCH --account=NAME
#SBATCH --output=%x-%j.out                   # one file a job
#SBATCH --open-mode=append                   # also when it starts again
#SBATCH --signal=B:USR1@300                  # so many seconds before its end this script is told
#SBATCH --requeue                            # after preemption and when a node is lost

setup() { # has python, lsam and their MPI found
  # module load gcc openmpi
  source .venv/bin/activate
}
# The network, where the defaults are not good: docs/clusters.md.
# export FI_PROVIDER=cxi                       # libfabric: cxi is Slingshot, verbs InfiniBand, tcp Ethernet
# export FI_CXI_RX_MATCH_MODE=hybrid           # Slingshot: go on in software when the card's match list is full
# export OMPI_MCA_osc_rdma_buffer_size=4194304 # Open MPI over TCP: adds to a window are 50 times faster
# export NCCL_SOCKET_IFNAME=hsn                # NCCL (--group-size above 1 on GPUs): the fast network's devices
out=runs/$SLURM_JOB_NAME-$SLURM_JOB_ID
launch=(srun --mpi=pmix --cpu-bind=cores)
# MPICH, Intel: launch=(srun --mpi=pmi2 --cpu-bind=cores). Others: docs/clusters.md.
command=(lsam train --data cifar10 --data-dir data --epochs 200 --out "$out" --resume auto)
# Ranks that import torch from a shared file system open thousands of small files each. An archive of the environment,
# made once by `tar -C .venv -cf env.tar .`, is copied to each node's own disk in place of that. Empty: none.
pack=''
disk=/tmp # a folder that is each node's own
requeues=3 # how often the job starts again at most, after it was stopped or killed
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
if [ -n "$pack" ]; then
  disk=$disk/lsam-$SLURM_JOB_ID
  everywhere=(srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1)
  trap '"${everywhere[@]}" rm -rf "$disk" "$disk.tar"' EXIT
  sbcast --force "$pack" "$disk.tar" && "${everywhere[@]}" mkdir -p "$disk" &&
    "${everywhere[@]}" tar -xf "$disk.tar" -C "$disk" || exit 2
  export PATH=$disk/bin:$PATH
fi
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
