#!/usr/bin/env bash
# Draws the figures that come from the pages' own commands and scripts: bash docs/figures/pages.sh, after
# bash jobs/quickstart.sh and with its environment active. Numbers differ a little from run to run.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=$(mktemp -d)
mkdir "$out/runs"
cp -r "${RUN:-runs/quickstart}" "$out/runs/first"
cd "$out"
block() { sed -n "/^\`\`\`$1/,/^\`\`\`/p" "$here/../$2" | sed '1d;/^```/Q'; } # the first block in a language
MPLBACKEND=Agg python <(block python howto/read-logs.md)
cp loss.png "$here/read-logs.png"
block python tutorials/own-loop.md > own.py
mpirun -n 4 --oversubscribe --bind-to none python -m mpi4py own.py
cp own.png "$here/own-loop.png"
lsam timeline runs/first trace.json.gz
python "$here/timeline.py" trace.json.gz "$here/timeline.png"
bash -e <(block bash tutorials/sampling.md) # a minute on two cores
python -c "from PIL import Image; i = Image.open('runs/samples/figures/diagnose.png'); i.crop((0, 0, i.width, 562)).save('$here/sampling.png')"
python "$here/diagrams.py" "$here"
