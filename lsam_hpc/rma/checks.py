"""Argument checks common to all shared vectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

from lsam_hpc.errors import InputError
from lsam_hpc.rma.collective import require_equal


def check_center(comm: MPI.Intracomm, size: int, dtype: str, start: NDArray[Any] | None) -> None:
    """Raise InputError on all ranks unless these arguments are valid for a center; collective.

    Args:
        comm: the ranks that share it.
        size: number of elements.
        dtype: type of the elements, or the 16-bit type in which they are transferred.
        start: initial y, or None.

    Raises:
        InputError: size is below 1, start has another shape, or arguments differ between ranks.
    """
    require_equal(comm, "the center's size", size)
    require_equal(comm, "the center's dtype", dtype)
    require_equal(comm, "the shape of the center's start", None if start is None else start.shape)
    if size < 1:
        raise InputError(f"center: expected a size of 1 element or more, found {size}")
    if start is not None and start.shape != (size,):
        raise InputError(f"center: expected start of shape ({size},), found {start.shape}")


def check_vector(name: str, vector: NDArray[Any], size: int, dtype: np.dtype[Any]) -> None:
    """Raise InputError unless a vector can be passed to MPI without a copy.

    Args:
        name: name of the calling operation, for the message.
        vector: vector to check.
        size: expected number of elements.
        dtype: expected type.
    """
    if vector.shape != (size,) or vector.dtype != dtype or not vector.flags.c_contiguous:
        raise InputError(
            f"{name}: expected a contiguous {dtype} vector of {size} elements, "
            f"found {vector.dtype} of shape {vector.shape}"
        )
