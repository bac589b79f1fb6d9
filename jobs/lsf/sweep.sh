#!/bin/bash
# An array job: one run for each value of an option.
#
#   bsub < jobs/lsf/sweep.sh
#
# >>> edit from here >>>
# one element per value below:
#BSUB -J "lsam[1-4]"
# number of ranks:
#BSUB -n 4
# ranks per node:
#BSUB -R "span[ptile=4]"
# one is for the exchange thread:
#BSUB -R "affinity[core(4)]"
# hours:minutes:
#BSUB -W 01:00
##BSUB -q QUEUE
##BSUB -P PROJECT
# a restart appends:
#BSUB -o lsam-%J-%I.out
# signal this many minutes before the time limit:
#BSUB -wa USR1 -wt 5

setup() { # puts python, lsam and MPI on the PATH
  # module load gcc openmpi
  source .venv/bin/activate
}
out=runs/${LSB_JOBNAME%%[*}-$LSB_JOBID-$LSB_JOBINDEX
values=(0.01 0.02 0.05 0.1)
value=${values[$((LSB_JOBINDEX - 1))]}
launch=(mpirun -n "$LSB_DJOB_NUMPROC" --hostfile "$LSB_DJOB_HOSTFILE" -x PATH -x LD_LIBRARY_PATH -x OMP_NUM_THREADS)
# MPICH, Intel: launch=(mpiexec -n "$LSB_DJOB_NUMPROC" -f "$LSB_DJOB_HOSTFILE"). Others: docs/howto/clusters.md.
command=(lsam train --data digits --out "$out" --resume auto --rho "$value")
requeues=0 # maximum number of restarts after the job was stopped or killed
retries=3 pause=10 # further launches after one that failed, and seconds before the first of them
# <<< to here <<<

# bash runs a trap only after the foreground command ends, so the ranks run in the background. USR1 is forwarded once:
# a second signal would end the ranks without a checkpoint.
forwarded="" terminated="" cancelled=""
forward() { [ -n "$forwarded" ] || [ -z "${ranks:-}" ] || kill -USR1 "$ranks"; forwarded=1; }
trap 'interrupted=1; forward' USR1
trap 'interrupted=1; terminated=1' TERM
near_end() { # less than two minutes are left: then TERM is from the time limit
  case $(bjobs -noheader -o time_left "$LSB_JOBID") in 0:[01]\ * | 0:0[01]\ *) ;; *) false ;; esac
}
told_to_end() { # by the batch system or the user
  if [ -n "$terminated" ]; then
    terminated=""
    near_end || cancelled=1
  fi
  [ -n "$forwarded$cancelled" ]
}

setup || { echo "setup failed" >&2; exit 2; }
export OMP_NUM_THREADS=4
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
    if [ -z "$cancelled" ] && [ "$(cat "$out.attempts" 2> /dev/null | wc -l)" -lt "$requeues" ]; then
      echo "code $code at $(date +%FT%T): restarting the job" >&2
      mkdir -p "$(dirname "$out")" && echo again >> "$out.attempts" && exit 99
    fi
    ;;
esac
exit "$code"
