"""A check that a read of the center never returns bytes of two different values in one element.

The elements cross 2, where their upper bytes change, so that an element with bytes of two values is out of range. On an
AMD Zen 3 with two ranks per core, one MPI_Get in 12 that ran beside adds returned such elements: its `rep movsb` copies
byte by byte if the offsets of source and target in their pages are nearly equal.
"""

import mmap

import numpy as np

from lsam_hpc.rma import barrier

SIZE, STEP = 300_000, 2.0**-6
LOW = 2 - 2 * STEP
START = np.full(SIZE, LOW, np.float32)


def check_elements_are_whole(comm, center):
    """Add a step and subtract it again, on four ranks at once: every read must be 0 to 4 steps above the start."""
    out = np.frombuffer(mmap.mmap(-1, 4 * SIZE + 16), np.float32, SIZE, 16)  # aligned like large blocks of malloc
    up = np.full(SIZE, STEP, np.float32)
    for delta in (up, -up) * 250:
        center.add(delta)
        center.read(out)
        assert out.min() >= LOW, np.unique(out)
        assert out.max() <= LOW + 4 * STEP, np.unique(out)
    barrier(comm)
