#!/usr/bin/env bash
# Installs what the tests need, checks style and types, and runs the tests.
#
#   bash tests/run.sh              style, types, and the fast tier on this environment's MPI
#   bash tests/run.sh --all        everything: the slow tier, a second MPI, two hosts, Slurm, a browser, instruction counts
#   bash tests/run.sh [--all] ARGS selected tests only, by pytest's arguments (-k center, tests/optim): nothing else is done
#                                  if the environment is ready
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../tools/environment.sh"
tier=()
if [ "${1:-}" = --all ]; then tier=(--all); shift; fi
lsam_environment dev
cd "$root"
cores=$(nproc) # before the next line: nproc obeys OMP_NUM_THREADS
export OMP_NUM_THREADS=1
unset PYTHONDONTWRITEBYTECODE # else each process of the tests compiles the package again
horovod=$("$python" -c 'import sys; print(sys.prefix)')/.lsam-horovod
[ $# -gt 0 ] && [ -e "$horovod" ] || bash tools/install_horovod.sh "$python"

if [ ${#tier[@]} -gt 0 ]; then
  # The second MPI needs a separate environment, because both install an mpiexec. It has its own mpi4py and uses the
  # other packages of the first environment.
  second=$root/.venv-mpich
  if [ ! -e "$second/.ready" ]; then
    rm -rf "$second"
    "$python" -m venv "$second"
    "$second/bin/python" -m pip install -q "mpich==5.0.2" "mpi4py>=4"
    # addsitedir, not a bare path: it reads the first environment's .pth files, which name this project's folder.
    purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
    echo "import site; site.addsitedir('$("$python" -c "$purelib")')" \
      > "$("$second/bin/python" -c "$purelib")/first-environment.pth"
    bash tools/install_horovod.sh "$second/bin/python"
    touch "$second/.ready"
  fi
  export LSAM_TEST_MPICH=$second
  # Slurm, a browser and valgrind, if they can be installed; otherwise their tests are skipped with the reason.
  bash tests/slurm/install.sh || true
  command -v chromium chromedriver > /dev/null || bash tests/debian.sh chromium chromium-driver || true
  command -v valgrind > /dev/null || bash tests/debian.sh valgrind || true
fi

if [ $# -gt 0 ]; then exec python -m pytest "${tier[@]}" "$@"; fi

ruff check .
ruff format --check .
codespell
mypy

# First the tests in one process, one worker per core; then the tests that start MPI jobs on all cores.
alone=0 jobs=0
python -m pytest "${tier[@]}" -m "not jobs" --numprocesses "$cores" --maxprocesses 8 --dist worksteal || alone=$?
python -m pytest "${tier[@]}" -m jobs || jobs=$?
[ ${#tier[@]} -gt 0 ] || echo "left out: tests marked slow, and the second MPI; bash tests/run.sh --all runs them"
exit $((alone || jobs))
