#!/usr/bin/env bash
# Installs Debian packages that some tests need, where that can be done: as root, with apt and a mirror in reach.
#
#   bash tests/debian.sh PACKAGE...
#
# Ends with 1 and a line that says why where there will be none.
set -euo pipefail
fail() { echo "tests: no $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "$1: expected root"
command -v apt-get > /dev/null || fail "$1: expected apt-get"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install() {
  DEBIAN_FRONTEND=noninteractive timeout 300 apt-get install -y -q --no-install-recommends \
    -o DPkg::Lock::Timeout=120 -o Acquire::Retries=2 "$@" > "$log" 2>&1
}
# A fresh container has no lists of packages; old lists may name files that the mirror has dropped.
install "$@" || { timeout 120 apt-get update -q > /dev/null 2>&1 && install "$@"; } || fail "$1: $(tail -n 1 "$log")"
