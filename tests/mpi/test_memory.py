"""Room in /dev/shm is looked for before windows are made, and all ranks refuse alike."""

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

# A node whose /dev/shm holds 64 MB, for one job. MPICH's own start takes 12 to 23 MB of it for two ranks, by how
# much they start at once, and crashes in MPI_Init where it finds less.
SMALL = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"', "sh")


def room(nbytes):
    return patch("os.statvfs", lambda path: SimpleNamespace(f_bavail=nbytes // 1000, f_frsize=1000))


@pytest.mark.mpi(np=[2, 4])
def test_all_ranks_say_what_is_needed_and_what_is_there(comm):
    needed = sum((rank + 1) * 1_000_000 + (1 << 16) for rank in range(comm.size))
    for free in (1_000_000, needed - 1000):
        with room(free), pytest.raises(InputError) as caught:
            check_shared_memory(comm, (comm.rank + 1) * 1_000_000, "the peers")
        assert caught.value.everywhere
        line = (
            f"/dev/shm on {os.uname().nodename}: expected {needed / 1e6:.1f} MB free "
            f"for the peers of {comm.size} ranks, found {free / 1e6:.1f} MB"
        )
        assert comm.allgather(str(caught.value)) == [line] * comm.size
    with room(needed + 1000):
        check_shared_memory(comm, (comm.rank + 1) * 1_000_000, "the peers")


@pytest.mark.mpi(np=[2, 4])
def test_a_center_is_refused_before_it_is_made(comm):
    with room(8_000_000), pytest.raises(InputError, match="for the center of"):
        Center(comm, 2_000_000)
    with room(8_000_000), Center(comm, 1_000_000):
        pass


@pytest.mark.mpi(np=[1])
def test_a_rank_alone_on_its_node_needs_no_shared_memory(comm):
    with room(0):
        check_shared_memory(comm, 1_000_000, "the center")


@pytest.mark.mpi(np=[2])
def test_nothing_is_checked_where_there_is_no_shared_memory(comm):
    with patch("os.statvfs", side_effect=FileNotFoundError):
        check_shared_memory(comm, 1_000_000, "the center")


def test_a_node_with_little_room_gives_one_clear_line(mpi, tmp_path):
    probe = subprocess.run([*SMALL, "true"], capture_output=True, text=True)
    if probe.returncode != 0:
        pytest.skip(f"mount namespaces are not allowed here: {probe.stderr.strip()}")
    small = replace(mpi, mpiexec=(*SMALL, *mpi.mpiexec))
    body = (Path(__file__), "in_little_room")
    why = Batch(small, 2, [body], tmp_path).failure(key(*body))
    assert why is None, why


def in_little_room(comm):
    with pytest.raises(InputError, match=r"/dev/shm on \S+: expected 80\.1 MB free for the center of 2 ranks, found"):
        Center(comm, 20_000_000)
    ones = np.ones(1_000_000, np.float32)
    with Center(comm, ones.size) as center:  # and what fits works
        center.add(ones)
        barrier(comm)
        center.read(ones)
    assert (ones == comm.size).all()
