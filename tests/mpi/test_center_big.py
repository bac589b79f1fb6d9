"""A center whose indices exceed 32 bits, and an object of as many bytes."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from lsam_hpc.rma import Center, barrier, broadcast

SIZE = (1 << 31) + (1 << 20) + 7
PERIOD = 97  # of the pattern: a prime, so that an element stored 2^31 or 2^32 away from its place is detected
GIB = 1 << 30


def missing_space():
    """Return which space is missing for a window of 2 GiB and a vector of 2 GiB, or None."""
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = {"memory": int(lines["MemAvailable"].split()[0]) * 1024, "/dev/shm": shutil.disk_usage("/dev/shm").free}
    needed = {"memory": 5 * GIB, "/dev/shm": 2.1 * GIB}
    short = [f"{needed[k] / GIB:.1f} GiB of {k}, found {free[k] / GIB:.1f}" for k in needed if free[k] < needed[k]]
    return "expected " + " and ".join(short) if short else None


@pytest.mark.slow("a center of more than 2^31 elements")
@pytest.mark.skipif(missing_space() is not None, reason=f"too little space for 2^31 elements: {missing_space()}")
@pytest.mark.mpi(np=[1, 2])
def test_supports_more_than_two_to_the_31_elements(comm):
    last = comm.size - 1
    block = np.resize(np.arange(PERIOD, dtype=np.int8) - 48, PERIOD << 15)
    spots = np.array([0, 1, SIZE // 2 - 1, SIZE // 2, (1 << 31) - 1, 1 << 31, (1 << 31) + 1, SIZE - 1])
    with Center(comm, SIZE, "int8") as center:
        vector = np.zeros(SIZE, np.int8)  # pages that are never written take no memory
        if comm.rank == last:
            for first in range(0, SIZE, block.size):
                piece = vector[first : first + block.size]
                piece[:] = block[: piece.size]
            center.add(vector)
        barrier(comm)
        if comm.rank == 0:
            sparse = np.zeros(SIZE, np.int8)
            sparse[spots] = 50
            center.add(sparse)
        barrier(comm)
        if comm.rank == last:
            assert center.read(vector) == 2
            np.testing.assert_array_equal(vector[spots], spots % PERIOD - 48 + 50)
            vector[spots] -= 50
            for first in range(0, SIZE, block.size):
                piece = vector[first : first + block.size]
                assert (piece == block[: piece.size]).all(), f"elements from {first} on"
            beyond = np.arange(1 << 31, SIZE) % PERIOD - 48
            assert vector[1 << 31 :].sum(dtype=np.int64) == beyond.sum()
        assert center.versions().tolist() == [2] * comm.size


@pytest.mark.slow("an object of more than 2 GiB")
@pytest.mark.skipif(missing_space() is not None, reason=f"too little space for two of 2 GiB: {missing_space()}")
@pytest.mark.mpi(np=[2])
def test_objects_of_more_than_two_gib_are_broadcast(comm):
    own = {"y": np.zeros(SIZE if comm.rank else 1, np.int8), "from": comm.rank}
    own["y"][-1] = comm.rank
    found = broadcast(comm, own, root=1)
    assert (found["from"], len(found["y"]), found["y"][-1]) == (1, SIZE, 1)
