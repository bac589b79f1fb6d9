"""What is removed after a job that was ended is no other job's."""

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.helpers.mpis import _CLEARED, _remove, available, run

# As a rank that starts: the file is open first, then mapped.
HOLDER = """
import mmap, os, sys
file = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)
os.ftruncate(file, 4096)
if sys.argv[2] == "mapped":
    memory = mmap.mmap(file, 4096)
    os.close(file)
print("holds it", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_shared_memory_that_a_process_holds_stays(how):
    path = Path("/dev/shm") / f"lsam-test-{uuid.uuid4().hex}"
    words = [sys.executable, "-c", HOLDER, str(path), how]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "holds it\n"
        _remove({path}, seconds=0.1)
        assert path.exists()
        holder.stdin.close()
        holder.wait(timeout=60)
        _remove({path})
    assert not path.exists()


def test_a_launcher_starts_where_a_killed_one_with_its_process_id_left_files(tmp_path):
    mpi = available().get("openmpi")
    if mpi is None:
        pytest.skip("no Open MPI here: tests/run.sh installs it")
    # Both shells end by exec: the launcher has the process id that the first one names.
    left = 'mkdir "$TMPDIR/ompi.$$" && touch "$TMPDIR/ompi.$$/pmix.$(uname -n).tool.$$" && exec "$@"'
    command = mpi.command(1, "true")
    for words, code in ((command, 0), (command[len(_CLEARED) :], 213)):
        assert run(["sh", "-c", left, "sh", *words], timeout=60, TMPDIR=str(tmp_path)).returncode == code
