#!/usr/bin/env bash
# Builds Horovod 0.28.1 from PyPI against the torch and the MPI of one Python environment.
#
#   bash tools/install_horovod.sh [PYTHON]     PYTHON (default): the active environment's, else that of .venv
#
# The wheel is kept in .cache/horovod, keyed by the Horovod, torch, MPI and Python versions. If there is a
# wheel, the installation takes seconds; if a working Horovod is installed, the script ends at once.
# Needs g++ >= 9 and cmake >= 3.13 on the PATH. LSAM_WHEELS=DIR sets another folder.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
version=0.28.1
if [ $# -gt 0 ]; then python=$1
elif [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then python=$(command -v python)
else python=$root/.venv/bin/python; fi
[ -x "$python" ] || { echo "install_horovod: no Python at $python: run 'bash jobs/quickstart.sh' first or name one" >&2; exit 2; }

key=$("$python" - <<'PY'
import re, sys, sysconfig
try:
    import mpi4py, torch
    mpi4py.rc.initialize = False  # Open MPI 5 leaves a file in /dev/shm if a process outside mpirun initializes it
    from mpi4py import MPI
except (ImportError, RuntimeError) as error:
    sys.exit(f"install_horovod: torch and mpi4py (with an MPI library) must be installed first: {error}")
vendor, numbers = MPI.get_vendor()
mpi = re.sub(r"\W", "", vendor.lower()) + ".".join(map(str, numbers))
print(f"torch{torch.__version__}-{mpi}-{sysconfig.get_config_var('SOABI')}")
PY
)

works() { # true if Horovod loads, has this version, and was built against this torch and this MPI
  [ "$(cat "$stamp" 2>/dev/null)" = "$version-$key" ] &&
    "$python" -c "import sys, mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; import horovod, horovod.torch as hvd; sys.exit(not (horovod.__version__ == '$version' and hvd.mpi_built()))" 2>/dev/null
}
stamp=$("$python" -c "import sys; print(sys.prefix)")/.lsam-horovod
if works; then echo "install_horovod: Horovod $version is installed ($key)"; exit 0; fi

bin=$(dirname "$python"); PATH=$bin:$PATH; export PATH
wheels=${LSAM_WHEELS:-$root/.cache/horovod}/$version-$key
if ! ls "$wheels"/horovod-*.whl >/dev/null 2>&1; then
  for program in g++ cmake mpicxx; do
    command -v $program >/dev/null || { echo "install_horovod: $program: not found on the PATH; load or install it, then run this again" >&2; exit 2; }
  done
  work=$(mktemp -d "${TMPDIR:-/tmp}/horovod-build.XXXXXX"); trap 'rm -rf "$work"' EXIT
  # torch needs C++17, but Horovod's CMake appends -std=c++14 to all flags. The last flag wins, so a wrapper adds 17.
  printf '#!/bin/sh\nexec g++ "$@" -std=c++17\n' > "$work/g++17"; chmod +x "$work/g++17"
  echo "install_horovod: building Horovod $version against $key (about 2 minutes on 2 cores)"
  "$python" -m pip install -q "setuptools<81" wheel packaging cffi cloudpickle psutil pyyaml
  if ! env CXX="$work/g++17" LDFLAGS='-Wl,-s -Wl,-rpath,$ORIGIN/../../../..' MAKEFLAGS="-j$(nproc)" \
      HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_MPI=1 HOROVOD_WITHOUT_GLOO=1 HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1 \
      "$python" -m pip wheel -v --no-build-isolation --no-cache-dir --no-deps --no-binary horovod -w "$work/wheel" "horovod==$version" \
      > "$work/log" 2>&1; then
    kept=$root/.cache/horovod/build.log; mkdir -p "$(dirname "$kept")"; cp "$work/log" "$kept"
    echo "install_horovod: the build failed; the compiler's last error:" >&2
    { grep -E 'error:|Error:|CMake Error|fatal|ERROR' "$work/log" || tail -n 5 "$work/log"; } | tail -n 5 >&2
    echo "install_horovod: whole log: .cache/horovod/build.log. Usual causes: g++ older than 9, cmake older than 3.13 or newer than 3.31, an mpicxx of another MPI than mpi4py's" >&2
    exit 1
  fi
  mkdir -p "$(dirname "$wheels")"; rm -rf "$wheels"; mv "$work/wheel" "$wheels"
fi
"$python" -m pip install -q cffi cloudpickle psutil pyyaml packaging
"$python" -m pip install -q --no-deps --force-reinstall "$wheels"/horovod-*.whl
printf '%s-%s' "$version" "$key" > "$stamp"
if ! works; then
  rm -f "$stamp"
  echo "install_horovod: the wheel was installed but does not load:" >&2
  "$python" -c "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; import horovod.torch" 2>&1 | tail -n 1 >&2
  echo "install_horovod: remove $wheels and run this again" >&2; exit 1
fi
echo "install_horovod: Horovod $version is installed ($key)"
