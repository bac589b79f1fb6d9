"""What is removed after a job that was ended is no other job's."""

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.helpers.mpis import _forget_launchers, _remove

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


def test_what_a_dead_launcher_left_goes_and_a_living_one_keeps_its_own(tmp_path):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as launcher:
        folder = tmp_path / f"ompi.{launcher.pid}"
        (folder / "0").mkdir(parents=True)
        (tmp_path / "ompi.host.0").mkdir()  # of a process without a launcher: user 0 is no process 0
        _forget_launchers(tmp_path)
        assert (folder / "0").exists()
        launcher.communicate(b"\n", timeout=60)
    _forget_launchers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ompi.host.0"]
