#!/usr/bin/env bash
# Draws the figures of docs/howto that are not the tutorial's: bash docs/figures/landscape.sh, after
# bash jobs/quickstart.sh and with its environment active. Numbers differ a little from run to run.
set -euo pipefail
run=${RUN:-runs/quickstart}
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(mktemp -d)
lsam diagnose "$run" --out "$out"
lsam path "$run" --name path --out "$out" --quiet
lsam spectrum "$run" --layers --out "$out" --quiet
lsam spectrum "$run" --along sample --out "$out" --quiet --name edge
lsam surface "$run" --kinds loss --to 0@0,1@3 --out "$out" --quiet --name plane
lsam redraw "$out/plane.h5" --static-3d
lsam predict "$run" --from 0 --out "$out" --quiet
lsam outliers "$run" --between 0@4,0@6 --out "$out" --quiet
for name in diagnose path spectrum-center-layers edge-edge plane plane-3d predict outliers; do
  cp "$out/$name.png" "$here/landscape-$name.png"
done
