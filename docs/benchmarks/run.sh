#!/usr/bin/env bash
# Runs all benchmarks of docs/explanation/performance.md and writes the page: bash docs/benchmarks/run.sh [RANKS...], with
# lsam and its mpirun on the PATH. RANKS: numbers of ranks of the growth benchmarks; default: 1 2 4 8. Run it on an idle
# machine: other work changes the numbers. 8 ranks with the largest model need 22 GB of memory; models that do not fit are skipped, and the page
# says so. REPEATS=3 makes it short, to test that it runs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=docs/benchmarks
export OMP_NUM_THREADS=1
flags=()
if mpirun --version | grep -q "Open MPI"; then # more ranks than cores need --oversubscribe
  flags=(--bind-to none --oversubscribe)
  export OMPI_MCA_osc=${OMPI_MCA_osc:-^ucx} # the wheel's UCX warns at each window
fi

bench() { # NAME RANKS REPEATS [FLAG]
  local launch=()
  if (($2 > 1)); then launch=(mpirun "${flags[@]}" -n "$2"); fi
  echo "== $(date +%T) $1 ${4:-}, ranks: $2"
  "${launch[@]}" lsam bench "$1" ${4:-} --repeats "${REPEATS:-$3}" --json "$out/$1${4:+-${4#--}}-$2.json"
}

bench startup 1 30
bench optimizer 1 30
bench train 1 30
bench exchange 2 20
bench exchange 4 20
bench straggler 4 30
bench horovod 2 30
for ranks in ${*:-1 2 4 8}; do bench growth "$ranks" 30; done
for ranks in ${*:-1 2 4}; do bench growth "$ranks" 30 --shard; done
bench progress 2 30
bench log 1 30
lsam bench report "$out"
echo "== $(date +%T) done"
