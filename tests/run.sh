#!/usr/bin/env bash
# Installs what the tests need, checks style and types, and runs the tests.
#
#   bash tests/run.sh              style, types, and the fast tier on this environment's MPI
#   bash tests/run.sh --all        everything: the slow tier, a second MPI, two hosts, Slurm, a browser, instruction counts
#   bash tests/run.sh [--all] ARGS selected tests only, by pytest's arguments (-k center, tests/optim): nothing else is done
#                                  where the environment is ready
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../tools/environment.sh"
tier=()
if [ "${1:-}" = --all ]; then tier=(--all); shift; fi
lsam_environment train,analysis,landscape,simulate,dev
cd "$root"
cores=$(nproc) # before the next line, which nproc heeds
export OMP_NUM_THREADS=1
unset PYTHONDONTWRITEBYTECODE # each of the tests' processes would compile the package anew
horovod=$("$python" -c 'import sys; print(sys.prefix)')/.lsam-horovod
[ $# -gt 0 ] && [ -e "$horovod" ] || bash tools/install_horovod.sh "$python"

if [ ${#tier[@]} -gt 0 ]; then
  # A second MPI lives in an environment of its own: two would overwrite each other's mpiexec. It has its own mpi4py and
  # sees the rest of the first environment's packages.
  second=$root/.venv-mpich
  if [ ! -e "$second/.ready" ]; then
    rm -rf "$second"
    "$python" -m venv "$second"
    "$second/bin/python" -m pip install -q "mpich==5.0.2" "mpi4py>=4"
    # addsitedir, not a bare path: the first environment's own .pth files say where this project's packages are.
    purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
    echo "import site; site.addsitedir('$("$python" -c "$purelib")')" \
      > "$("$second/bin/python" -c "$purelib")/first-environment.pth"
    bash tools/install_horovod.sh "$second/bin/python"
    touch "$second/.ready"
  fi
  export LSAM_TEST_MPICH=$second
  # A Slurm and a browser, where they can be had; elsewhere their tests are skipped and say so.
  bash tests/slurm/install.sh || true
  command -v chromium chromedriver > /dev/null || bash tests/debian.sh chromium chromium-driver || true
  command -v valgrind > /dev/null || bash tests/debian.sh valgrind || true
fi

if [ $# -gt 0 ]; then exec python -m pytest "${tier[@]}" "$@"; fi

ruff check .
ruff format --check .
codespell
mypy

# First what runs in one process, a worker per core; then what starts MPI jobs, which take the cores themselves.
alone=0 jobs=0
python -m pytest "${tier[@]}" -m "not jobs" --numprocesses "$cores" --maxprocesses 8 --dist worksteal || alone=$?
python -m pytest "${tier[@]}" -m jobs || jobs=$?
[ ${#tier[@]} -gt 0 ] || echo "left out: tests marked slow, which say why, and the second MPI: bash tests/run.sh --all"
exit $((alone || jobs))
