#!/usr/bin/env bash
# Draws the figures of docs/tutorials/landscape.md: bash docs/figures/tutorial.sh, after bash jobs/quickstart.sh and with
# its environment active. Numbers differ a little from run to run: the chains are asynchronous.
set -euo pipefail
run=runs/quickstart
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
lsam diagnose "$run" --overwrite
lsam trajectory "$run" --surface 25 --overwrite --quiet
lsam surface "$run" --kinds loss,sam --overwrite --quiet
lsam spectrum "$run" --overwrite --quiet
lsam sharpness "$run" --at center,0@0 --overwrite --quiet
lsam path "$run" --overwrite --quiet
lsam report "$run"
for name in trajectory surface-center-random spectrum-center sharpness; do
  cp "$run/figures/$name.png" "$here/tutorial-$name.png"
done
