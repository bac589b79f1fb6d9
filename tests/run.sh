#!/usr/bin/env bash
# Installs what the tests need and runs them all: style, types, and the suite on Open MPI and on MPICH.
#
#   bash tests/run.sh                 everything
#   bash tests/run.sh -k center       arguments go to pytest
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../tools/environment.sh"
lsam_environment train,analysis,landscape,simulate,dev
cd "$root"
bash tools/install_horovod.sh "$python"

# A second MPI lives in an environment of its own: two would overwrite each other's mpiexec. It has its own mpi4py and
# sees the rest of the first environment's packages.
second=$root/.venv-mpich
if [ ! -e "$second/.ready" ]; then
  rm -rf "$second"
  "$python" -m venv "$second"
  "$second/bin/python" -m pip install -q "mpich==5.0.2" "mpi4py>=4"
  touch "$second/.ready"
fi
# addsitedir, not a bare path: the first environment's own .pth files say where this project's packages are.
purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
echo "import site; site.addsitedir('$("$python" -c "$purelib")')" \
  > "$("$second/bin/python" -c "$purelib")/first-environment.pth"
bash tools/install_horovod.sh "$second/bin/python"  # its own, before the first environment's on the path
export LSAM_TEST_MPICH=$second

# A Slurm and a browser, where they can be had; elsewhere their tests are skipped and say so.
bash tests/slurm/install.sh || true
command -v chromium chromedriver > /dev/null || bash tests/debian.sh chromium chromium-driver || true
command -v valgrind > /dev/null || bash tests/debian.sh valgrind || true

ruff check .
ruff format --check .
mypy

# First what runs in one process, a worker per core; then what starts MPI jobs, which take the cores themselves.
alone=0 jobs=0
OMP_NUM_THREADS=1 python -m pytest -m "not jobs" --numprocesses "$(nproc)" --maxprocesses 8 --dist worksteal "$@" || alone=$?
python -m pytest -m jobs "$@" || jobs=$?
# 5: there were no tests of this kind.
case "$alone $jobs" in
  "0 0" | "0 5" | "5 0") ;;
  *) exit 1 ;;
esac
