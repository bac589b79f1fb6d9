#!/bin/bash
# Several nodes with GPUs: one chain per GPU.
#
#   sbatch jobs/slurm/many-nodes.sh
#
# >>> edit from here >>>
#SBATCH --job-name=lsam
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=4                  # one rank per GPU
#SBATCH --cpus-per-task=8                    # one is for the exchange thread
#SBATCH --gpus-per-node=4
#SBATCH --gpu-bind=none                      # each rank sees all GPUs of its node, and uses the one next to its cores
#SBATCH --time=04:00:00
##SBATCH --partition=NAME
##SBATCH --account=NAME
#SBATCH --output=%x-%j.out                   # one file per job
#SBATCH --open-mode=append                   # a restart appends
#SBATCH --signal=B:USR1@300                  # signal this script that many seconds before the time limit
#SBATCH --requeue                            # restart after preemption and when a node fails

setup() { # puts python, lsam and MPI on the PATH
  # module load gcc openmpi
  source .venv/bin/activate
}
# Network settings, for networks with bad defaults: docs/reference/launchers.md.
# export FI_PROVIDER=cxi                       # libfabric: cxi is Slingshot, verbs InfiniBand, tcp Ethernet
# export FI_CXI_RX_MATCH_MODE=hybrid           # Slingshot: match in software when the card's list is full
# export OMPI_MCA_osc_rdma_buffer_size=4194304 # Open MPI over TCP: adds to a window are 50 times faster
# export NCCL_SOCKET_IFNAME=hsn                # NCCL (--group-size above 1 on GPUs): devices of the fast network
out=runs/$SLURM_JOB_NAME-$SLURM_JOB_ID
launch=(srun --mpi=pmix --cpu-bind=cores)
# MPICH, Intel: launch=(srun --mpi=pmi2 --cpu-bind=cores). Others: docs/howto/clusters.md.
command=(lsam train --data cifar10 --data-dir data --epochs 200 --out "$out" --resume auto)
# Ranks that import torch from a shared file system open thousands of small files each. To avoid this, an archive of the
# environment, made by `tar -C .venv -cf env.tar .`, is unpacked on each node. Empty: use the shared environment.
pack=''
disk=/tmp # a node-local folder
requeues=3 # maximum number of restarts after the job was stopped or killed
retries=3 pause=10 # further launches after one that failed, and seconds before the first of them
# <<< to here <<<

# bash runs a trap only after the foreground command ends, so the ranks run in the background. USR1 is forwarded once:
# a second signal would end the ranks without a checkpoint.
forwarded="" terminated="" cancelled=""
forward() { [ -n "$forwarded" ] || [ -z "${ranks:-}" ] || kill -USR1 "$ranks"; forwarded=1; }
trap 'interrupted=1; forward' USR1
trap 'interrupted=1; terminated=1' TERM
near_end() { # less than a minute is left: then TERM is from the time limit
  case $(squeue -h -j "$SLURM_JOB_ID" -o %L) in 0:* | INVALID) ;; *) false ;; esac
}
told_to_end() { # by the batch system or the user
  if [ -n "$terminated" ]; then
    terminated=""
    near_end || cancelled=1
  fi
  [ -n "$forwarded$cancelled" ]
}

setup || { echo "setup failed" >&2; exit 2; }
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then # else the ranks of a node share its cores
  export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
  export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not inherit it from sbatch
fi
if [ -n "$pack" ]; then
  disk=$disk/lsam-$SLURM_JOB_ID
  case $disk in /*) ;; *) echo "--disk: expected an absolute path, found $disk" >&2; exit 2 ;; esac
  everywhere=(srun --ntasks="$SLURM_NNODES" --ntasks-per-node=1)
  trap '"${everywhere[@]}" rm -rf "$disk" "$disk.tar"' EXIT
  sbcast --force "$pack" "$disk.tar" && "${everywhere[@]}" mkdir -p "$disk" &&
    "${everywhere[@]}" tar -xf "$disk.tar" -C "$disk" || exit 2
  export PATH=$disk/bin:$PATH
fi
# A launcher may return 0 although no rank started. A training run is done only when its run directory says so.
case " ${command[*]} " in
  *" lsam train"*" --out $out "* | *" lsam_hpc train"*" --out $out "*) trains=1 ;;
  *) trains="" ;; # other commands are judged by their exit code
esac
file_id() { ls -li --time-style=full-iso "$1" 2> /dev/null; }
finished() { # the newest manifest says that the budget is spent; without checkpoints: this launch wrote the center
  local sets=("$out"/checkpoints/set-*.json)
  grep -qs '^ "finished": true' "${sets[@]: -1}" || [ "$(file_id "$out/checkpoints/center.pt")" != "$center" ]
}
why_unfinished() { # says why the launch failed, if it did
  case ${trains:-other}-$code in
    other-* | 1-2 | 1-3 | 1-4) return ;; # the ranks themselves returned 2, 3 or 4
  esac
  if [ "$(file_id "$out/config.json")" = "$config" ]; then
    echo "no rank wrote $out/config.json, and the launcher returned $code"
  elif [ "$code" = 0 ] && ! finished; then
    echo "the launcher returned 0, but no manifest in $out/checkpoints says that the run is finished"
  fi
}
launches=0
while :; do
  config=$(file_id "$out/config.json") center=$(file_id "$out/checkpoints/center.pt")
  "${launch[@]}" "${command[@]}" &
  ranks=$! launches=$((launches + 1)) interrupted=1
  while [ -n "$interrupted" ]; do
    interrupted=""
    wait "$ranks" # a signal interrupts wait, not the ranks
    code=$?
    [ "$code" -ge 0 ] || code=143 # bash 5.2 loses the code of a process that ends at the moment of a signal
    told_to_end
  done
  ranks="" why=$(why_unfinished)
  [ -z "$why" ] || echo "launch $launches: $why" >&2
  if [ -z "$why" ] || [ "$launches" -gt "$retries" ] || told_to_end; then break; fi
  sleep "$((launches * pause))" &
  wait $!
  if told_to_end; then break; fi
done
[ -z "$why" ] || [ "$code" != 0 ] || code=75
told_to_end

# Do not restart after 0 (done), 1 and 2 (permanent errors) and 4 (done, but some ranks failed). Restart after all other
# codes: 3 (stopped after a checkpoint), 75 (not done), above 128 (killed), and those of a launcher that lost a node.
case $code in
  0 | 1 | 2 | 4) ;;
  *)
    if [ -z "$cancelled" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt "$requeues" ]; then
      echo "code $code at $(date +%FT%T): restarting the job" >&2
      scontrol requeue "$SLURM_JOB_ID"
    fi
    ;;
esac
exit "$code"
