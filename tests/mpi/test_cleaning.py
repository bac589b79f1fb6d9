"""The cleanup after a killed job removes no files of other jobs."""

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.helpers.mpis import _CLEARED, available, remove, run

# Like a starting rank: it opens the file first, then maps it.
HOLDER = """
import mmap, os, sys
file = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR)
os.ftruncate(file, 4096)
if sys.argv[2] == "mapped":
    memory = mmap.mmap(file, 4096)
    os.close(file)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["open", "mapped"])
def test_shared_memory_in_use_is_not_removed(how):
    path = Path("/dev/shm") / f"lsam-test-{uuid.uuid4().hex}"
    words = [sys.executable, "-c", HOLDER, str(path), how]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "ready\n"
        remove({path}, seconds=0.1)
        assert path.exists()
        holder.stdin.close()
        holder.wait(timeout=60)
        remove({path})
    assert not path.exists()


def test_a_launcher_starts_despite_files_of_a_killed_one_with_its_process_id(tmp_path):
    mpi = available().get("openmpi")
    if mpi is None:
        pytest.skip("Open MPI is not installed: tests/run.sh installs it")
    # Both shells end by exec, so the launcher has the process id in the names of the files.
    leave_files = 'mkdir "$TMPDIR/ompi.$$" && touch "$TMPDIR/ompi.$$/pmix.$(uname -n).tool.$$" && exec "$@"'
    command = mpi.command(1, "true")
    for words, code in ((command, 0), (command[len(_CLEARED) :], 213)):
        assert run(["sh", "-c", leave_files, "sh", *words], timeout=60, TMPDIR=str(tmp_path)).returncode == code
