"""What every shared vector asks of its arguments."""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.rma.collective import same


def check_center(comm: MPI.Intracomm, size: int, dtype: str, start: NDArray[Any] | None) -> None:
    """Raise InputError on all ranks unless a center can be made of these arguments; collective.

    Args:
        comm: the ranks that share it.
        size: number of elements.
        dtype: of the elements, or their form on the wire.
        start: y at the start, or None.

    Raises:
        InputError: size is below 1, start has another shape, or the ranks were given different ones.
    """
    same(comm, "the center's size", size)
    same(comm, "the center's dtype", dtype)
    same(comm, "the shape of the center's start", None if start is None else start.shape)
    if size < 1:
        raise InputError(f"center: expected a size of 1 element or more, found {size}")
    if start is not None and start.shape != (size,):
        raise InputError(f"center: expected start of shape ({size},), found {start.shape}")


def check_vector(name: str, vector: NDArray[Any], size: int, dtype: np.dtype[Any]) -> None:
    """Raise InputError unless a vector can be handed to MPI as it is.

    Args:
        name: of the call, for the message.
        vector: that was given.
        size: number of elements expected.
        dtype: expected.
    """
    if vector.shape != (size,) or vector.dtype != dtype or not vector.flags.c_contiguous:
        raise InputError(
            f"{name}: expected a contiguous {dtype} vector of {size} elements, "
            f"found {vector.dtype} of shape {vector.shape}"
        )
