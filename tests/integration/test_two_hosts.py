"""Ranks on two hosts that communicate by TCP."""

import os
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from lsam_hpc import InputError
from tests.helpers.batch import LIMIT, Batch, key
from tests.helpers.hosts import NAMES, available, two_hosts

pytestmark = pytest.mark.timeout(LIMIT * 6)


@pytest.fixture(autouse=True)
def _allowed():
    if why := available():
        pytest.skip(f"no two hosts: {why}")


def across(mpi, ranks, tmp_path, bodies, **options):
    """Run functions of this file one after another on the ranks of both hosts."""
    tests = [(Path(__file__), body.__name__) for body in bodies]
    with two_hosts(**options) as hosts:
        batch = Batch(hosts.across(mpi, ranks), ranks, tests, tmp_path)
    whys = [f"{name}:\n{why}" for file, name in tests if (why := batch.failure(key(file, name))) is not None]
    assert not whys, "\n".join(whys)


@pytest.mark.slow("needs two hosts")
def test_center_is_exact_across_hosts(mpi, tmp_path):
    across(mpi, 4, tmp_path, [sees_two_hosts, adds_are_exact, snapshots_hold_whole_adds])


def test_room_is_checked_on_each_host(mpi, tmp_path):
    across(mpi, 4, tmp_path, [too_big_a_center_is_refused], shared_memory="40m")


def test_no_process_of_the_hosts_remains(mpi):
    with two_hosts() as hosts:
        spaces = {
            subprocess.run([*words, "readlink", "/proc/self/ns/net"], capture_output=True, text=True).stdout.strip()
            for words in hosts.enter
        }
        assert len(spaces) == 2
        assert os.readlink("/proc/self/ns/net") not in spaces
        with pytest.raises(subprocess.TimeoutExpired):
            hosts.run(mpi, 2, "sleep", "300", timeout=5)
    deadline = time.monotonic() + 30
    while remaining := [pid for pid in os.listdir("/proc") if pid.isdigit() and net(pid) in spaces]:
        assert time.monotonic() < deadline, remaining
        time.sleep(0.1)


def net(pid):
    try:
        return os.readlink(f"/proc/{pid}/ns/net")
    except OSError:
        return None  # the process has ended


def sees_two_hosts(comm):
    from mpi4py import MPI

    from lsam_hpc.rma.progress import why_progress_needed

    names = comm.allgather(MPI.Get_processor_name())
    assert names == [NAMES[0]] * 2 + [NAMES[1]] * 2
    node = comm.Split_type(MPI.COMM_TYPE_SHARED)
    assert comm.allgather((node.rank, node.size)) == [(0, 2), (1, 2), (0, 2), (1, 2)]
    node.Free()
    assert why_progress_needed(comm) == "ranks span nodes: 4 ranks, 2 on the emptiest node"


def adds_are_exact(comm):
    from lsam_hpc.rma import Center, barrier
    from lsam_hpc.rma.progress import ProgressThread

    # As many adds as time allows: over TCP one takes 0.3 ms (MPICH) to 50 ms (Open MPI, two ranks per host).
    size, least, most, seconds = 64, 50, 25_000, 10
    deltas = np.random.default_rng(comm.rank).integers(-3, 4, (most, size)).astype(np.float64)
    out = np.empty(size)
    before = []
    with ProgressThread(comm), Center(comm, size, "float64") as center:
        deadline = time.monotonic() + seconds
        for delta in deltas:
            before.append(center.add(delta))
            if len(before) >= least and time.monotonic() > deadline:
                break
        barrier(comm)
        versions = np.sort(np.concatenate(comm.allgather(before)))
        assert np.array_equal(versions, np.arange(versions.size))
        assert center.read(out) == versions.size
        assert (center.versions() == versions.size).all()
    np.testing.assert_array_equal(out, sum(comm.allgather(deltas[: len(before)].sum(0))))


def snapshots_hold_whole_adds(comm):
    from lsam_hpc.rma import Center, barrier
    from lsam_hpc.rma.progress import ProgressThread

    size = 3 * (1 << 18) + 5
    with ProgressThread(comm), Center(comm, size) as center:
        ones, out = np.ones(size, np.float32), np.empty(size, np.float32)
        if comm.rank == 1:
            versions = []
            for _ in range(10):
                versions.append(center.read(out, consistent=True))
                assert (out == versions[-1]).all()
            assert versions == sorted(versions)
        else:
            for _ in range(20):
                center.add(ones)
        barrier(comm)
        assert center.read(out) == 20 * (comm.size - 1)


def too_big_a_center_is_refused(comm):
    from lsam_hpc.rma import Center

    with pytest.raises(InputError, match=f"/dev/shm on ({'|'.join(NAMES)}): expected 50.1 MB free for the center"):
        Center(comm, 25_000_000)
