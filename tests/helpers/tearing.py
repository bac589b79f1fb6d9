"""A center whose elements pass 2, where their upper bytes change: a read that copies single bytes holds other numbers.

On an AMD Zen 3, with two ranks per core, one MPI_Get in 12 beside the adds did: its `rep movsb` copies byte by byte
where source and target lie alike in their pages but for a little.
"""

import mmap

import numpy as np

from lsam_hpc.rma import barrier

SIZE, STEP = 300_000, 2.0**-6
LOW = 2 - 2 * STEP
START = np.full(SIZE, LOW, np.float32)


def check_elements_are_whole(comm, center):
    """Have each of four ranks go a step up and down again: y is 0 to 4 steps above its start, whoever reads it when."""
    out = np.frombuffer(mmap.mmap(-1, 4 * SIZE + 16), np.float32, SIZE, 16)  # as malloc gives large ones
    up = np.full(SIZE, STEP, np.float32)
    for delta in (up, -up) * 250:
        center.add(delta)
        center.read(out)
        assert out.min() >= LOW, np.unique(out)
        assert out.max() <= LOW + 4 * STEP, np.unique(out)
    barrier(comm)
