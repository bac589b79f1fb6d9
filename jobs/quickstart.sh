#!/usr/bin/env bash
# Installs lsam-hpc into .venv (or the active environment) and trains a classifier of handwritten digits with four
# chains on this machine. Later runs skip the installation. Arguments go to `lsam train`; RANKS=N sets the number of
# chains.
#
#   bash jobs/quickstart.sh
#   RANKS=2 bash jobs/quickstart.sh --coupling kernel --rho 0.1
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../tools/environment.sh"
lsam_environment train
cd "$root"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
lsam_mpirun "${RANKS:-4}" lsam train --out runs/quickstart --overwrite --snapshot-every log "$@"
