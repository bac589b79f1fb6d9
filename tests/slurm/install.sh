#!/usr/bin/env bash
# Gets a Slurm for tests/slurm from Debian's packages, where that can be done: as root, with apt and a mirror in reach.
# Run again, it ends at once. Ends with 1 and a line that says why where there will be none.
set -euo pipefail
fail() { echo "tests/slurm: no Slurm: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "expected root"
pmix=/usr/lib/x86_64-linux-gnu/pmix2/lib
if ! command -v slurmctld slurmd munged sbatch > /dev/null || [ ! -e "$pmix/libpmix.so.2" ]; then
  command -v apt-get > /dev/null || fail "expected apt-get"
  packages=(slurmctld slurmd slurm-client munge libpmix2)
  install() {
    DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -y -q --no-install-recommends \
      -o DPkg::Lock::Timeout=120 -o Acquire::Retries=2 "${packages[@]}" > "$log" 2>&1
  }
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  # A fresh container has no lists of packages; old lists may name files that the mirror has dropped.
  install || { timeout 120 apt-get update -q > /dev/null 2>&1 && install; } || fail "apt-get install: $(tail -n 1 "$log")"
fi
# Slurm opens libpmix.so, which Debian ships in libpmix-dev only, and that brings a compiler's worth of packages.
[ -e "$pmix/libpmix.so" ] || ln -s libpmix.so.2 "$pmix/libpmix.so"
