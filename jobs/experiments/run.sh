#!/usr/bin/env bash
# Trains and compares what a suite beside this script says; started again, it goes on where it was.
#
#   bash jobs/experiments/run.sh smallest DATA_DIR [OUT]     results in OUT (default: runs/smallest)
#
# DATA_DIR holds the data set's files: docs/running.md says which. More words go to `lsam bench compare`, as --launcher on a
# cluster. The suites and what came of them: docs/results.md.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../tools/environment.sh"
[ $# -ge 2 ] || lsam_fail "expected the name of a suite and the data's directory, found $# words"
suite=$root/jobs/experiments/$1.yaml data=$2 out=${3:-runs/$1}
[ -f "$suite" ] || lsam_fail "expected a suite in jobs/experiments, found no $1.yaml"
shift $(($# < 3 ? 2 : 3))
lsam_environment train,analysis,landscape
launcher=$(lsam_launcher)
exec lsam bench compare --suite "$suite" --data-dir "$data" --out "$out" --launcher "$launcher" "$@"
