#!/usr/bin/env bash
# Builds the documentation site: the pages of docs/ and the API from the docstrings. A broken link or reference fails.
#
#   bash docs/build.sh         into build/site; open build/site/index.html
#   bash docs/build.sh DIR     into DIR
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../tools/environment.sh"
python=$root/.venv/bin/python
[ -z "${VIRTUAL_ENV:-${CONDA_PREFIX:-}}" ] || python=$(command -v python)
"$python" -c 'import mkdocs, mkdocstrings_handlers.python' 2> /dev/null || lsam_environment docs
site=$(realpath -m "${1:-$root/build/site}")
"$python" -m mkdocs build --quiet --strict --clean --config-file "$root/docs/site/mkdocs.yml" --site-dir "$site"
echo "$site/index.html"
