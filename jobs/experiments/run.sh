#!/usr/bin/env bash
# Trains and compares the methods of a suite in this folder; an interrupted suite continues where it stopped.
#
#   bash jobs/experiments/run.sh smallest DATA_DIR [OUT]     results in OUT (default: runs/smallest)
#
# DATA_DIR holds the data set's files (docs/reference/data.md). Further arguments go to `lsam bench compare`, such as
# --launcher on a cluster. The suites and their results: docs/results.md.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../tools/environment.sh"
[ $# -ge 2 ] || lsam_fail "expected the name of a suite and the data's directory, found $# arguments"
suite=$root/jobs/experiments/$1.yaml data=$2 out=${3:-runs/$1}
[ -f "$suite" ] || lsam_fail "expected a suite in jobs/experiments, found no $1.yaml"
shift $(($# < 3 ? 2 : 3))
lsam_environment all
launcher=$(lsam_launcher)
exec lsam bench compare --suite "$suite" --data-dir "$data" --out "$out" --launcher "$launcher" "$@"
