#!/usr/bin/env bash
# Gets a Slurm for tests/slurm from Debian's packages, where that can be done. Run again, it ends at once. Ends with 1 and a
# line that says why where there will be none.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
pmix=/usr/lib/x86_64-linux-gnu/pmix2/lib
if ! command -v slurmctld slurmd munged sbatch > /dev/null || [ ! -e "$pmix/libpmix.so.2" ]; then
  bash "$here/../debian.sh" slurmctld slurmd slurm-client munge libpmix2
fi
# Slurm opens libpmix.so, which Debian ships in libpmix-dev only, and that brings a compiler's worth of packages.
[ -e "$pmix/libpmix.so" ] || ln -s libpmix.so.2 "$pmix/libpmix.so"
