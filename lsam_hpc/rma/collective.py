"""Collective calls, used only before training starts and after it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from mpi4py import MPI
from mpi4py.util import pkl5

from lsam_hpc.errors import InputError, RankLostError
from lsam_hpc.rma import faults

T = TypeVar("T")


def barrier(comm: MPI.Intracomm) -> None:
    """Wait for all ranks."""
    wait_without_spinning(comm.Ibarrier())


def broadcast(comm: MPI.Comm, value: T, root: int = 0) -> T:
    """Return the root's value on all ranks; unlike `comm.bcast` it may be larger than 2 GiB.

    Args:
        comm: the ranks.
        value: can be pickled; those of the others do not matter.
        root: a rank. Default 0.
    """
    result: T = pkl5.Comm(comm).bcast(value, root)
    return result


_GIVEN_UP: list[object] = []  # requests and their buffers, to which MPI may still write


def wait_without_spinning(
    request: MPI.Request, *buffers: object, lost: Callable[[], bool] = lambda: faults.watch().lost
) -> None:
    """Wait for a request without spinning, so that a waiting rank leaves its core to working ones.

    Args:
        request: to wait for.
        buffers: that it uses. mpi4py does not keep them.
        lost: returns whether a rank that the request needs is lost. Default: whether any is.

    Raises:
        RankLostError: a rank has failed meanwhile, in a job with ULFM.
    """
    pause = 1e-5
    try:
        while not request.Test():
            if lost():
                _GIVEN_UP.append((request, buffers))
                raise RankLostError("a rank has failed that others wait for")
            time.sleep(pause)
            pause = min(2 * pause, 1e-3)
    except MPI.Exception as error:
        if not faults.watch().explains(error):
            raise
        raise RankLostError(str(error)) from error


def raise_on_all(comm: MPI.Intracomm, function: Callable[[], T]) -> T:
    """Run a function on every rank; if it raises InputError on any of them, raise it on all.

    Args:
        comm: the ranks that take part; collective.
        function: called once on each rank.

    Returns:
        What the function returned on this rank.

    Raises:
        InputError: with the message of the lowest rank that failed; names the rank unless all gave the same message.
    """
    failure: str | None = None
    try:
        result = function()
    except InputError as error:
        failure = str(error)
    barrier(comm)
    messages = comm.allgather(failure)
    failed = [rank for rank, message in enumerate(messages) if message is not None]
    if not failed:
        return result
    if len(set(messages)) == 1:
        raise InputError(messages[failed[0]] or "", everywhere=True)
    raise InputError(f"rank {failed[0]}: {messages[failed[0]]}", everywhere=True)


def require_equal(comm: MPI.Intracomm, what: str, value: object) -> None:
    """Raise InputError on all ranks unless all of them hold an equal value; collective.

    Args:
        comm: the ranks that take part.
        what: name of the value, for the message, as in "the number of parameters".
        value: this rank's value; its repr is compared and shown.
    """
    values = comm.allgather(repr(value))
    for rank, other in enumerate(values):
        if other != values[0]:
            raise InputError(
                f"{what}: expected the same on every rank, found {values[0]} on rank 0, {other} on rank {rank}",
                everywhere=True,
            )
