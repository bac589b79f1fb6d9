"""The free space of /dev/shm is checked before windows are created; all ranks raise the same error."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest

from lsam_hpc import InputError
from lsam_hpc.rma import Center, barrier
from lsam_hpc.rma.memory import check_shared_memory
from tests.helpers.batch import Batch, key

# A node whose /dev/shm has 64 MB, for one job. MPICH itself needs 12 to 23 MB of it for two ranks, depending on the
# order of their start, and crashes in MPI_Init if there is less.
SMALL = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"', "sh")


def free_space(nbytes):
    return patch("os.statvfs", lambda path: SimpleNamespace(f_bavail=nbytes // 1000, f_frsize=1000))


@pytest.mark.mpi(np=[2, 4])
def test_all_ranks_report_the_needed_and_the_free_space(comm):
    needed = sum((rank + 1) * 1_000_000 + (1 << 16) for rank in range(comm.size))
    for free in (1_000_000, needed - 1000):
        with free_space(free), pytest.raises(InputError) as caught:
            check_shared_memory(comm, (comm.rank + 1) * 1_000_000, "the peers")
        assert caught.value.everywhere
        line = (
            f"/dev/shm on {os.uname().nodename}: expected {needed / 1e6:.1f} MB free "
            f"for the peers of {comm.size} ranks, found {free / 1e6:.1f} MB"
        )
        assert comm.allgather(str(caught.value)) == [line] * comm.size
    with free_space(needed + 1000):
        check_shared_memory(comm, (comm.rank + 1) * 1_000_000, "the peers")


@pytest.mark.mpi(np=[2, 4])
def test_a_center_without_space_is_refused_before_its_window_exists(comm):
    with free_space(8_000_000), pytest.raises(InputError, match="for the center of"):
        Center(comm, 2_000_000)
    with free_space(8_000_000), Center(comm, 1_000_000):
        pass


@pytest.mark.mpi(np=[1])
def test_a_rank_alone_on_its_node_needs_no_shared_memory(comm):
    with free_space(0):
        check_shared_memory(comm, 1_000_000, "the center")


@pytest.mark.mpi(np=[2])
def test_nothing_is_checked_without_dev_shm(comm):
    with patch("os.statvfs", side_effect=FileNotFoundError):
        check_shared_memory(comm, 1_000_000, "the center")


def test_a_node_with_little_space_gives_a_one_line_error(mpi, tmp_path):
    probe = subprocess.run([*SMALL, "true"], capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip(f"mount namespaces are not allowed here: {probe.stderr.strip()}")
    small = replace(mpi, mpiexec=(*SMALL, *mpi.mpiexec))
    body = (Path(__file__), "run_with_little_space")
    why = Batch(small, 2, [body], tmp_path).failure(key(*body))
    assert why is None, why


def run_with_little_space(comm):
    with pytest.raises(InputError, match=r"/dev/shm on \S+: expected 80\.1 MB free for the center of 2 ranks, found"):
        Center(comm, 20_000_000)
    ones = np.ones(1_000_000, np.float32)
    with Center(comm, ones.size) as center:  # a smaller one works
        center.add(ones)
        barrier(comm)
        center.read(ones)
    assert (ones == comm.size).all()
