#!/usr/bin/env bash
# Installs a Slurm for tests/slurm from Debian's packages, if it is not installed. Exits with 1 and a message where that is
# not possible.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
pmix=/usr/lib/x86_64-linux-gnu/pmix2/lib
if ! command -v slurmctld slurmd munged sbatch > /dev/null || [ ! -e "$pmix/libpmix.so.2" ]; then
  bash "$here/../debian.sh" slurmctld slurmd slurm-client munge libpmix2
fi
# Slurm opens libpmix.so. Debian ships that in libpmix-dev only, which depends on a compiler's packages.
[ -e "$pmix/libpmix.so" ] || ln -s libpmix.so.2 "$pmix/libpmix.so"
