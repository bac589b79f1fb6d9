"""Starts MPI and Horovod in the right order, and ends the job when a rank fails."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

import horovod.torch as real
from mpi4py import MPI

from lsam_hpc.errors import InputError
from lsam_hpc.horovod.options import resolve
from lsam_hpc.horovod.session import session
from lsam_hpc.rma.progress import require_threads
from lsam_hpc.util import launcher
from lsam_hpc.util.preflight import check_world, libraries

_real_init, _real_shutdown = real.init, real.shutdown


def init(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as Horovod's
    """Start MPI by mpi4py, which LSAM's windows need, and then Horovod, as `horovod.torch.init` does.

    Raises:
        InputError: Horovod was built without MPI, the process has loaded a second MPI library, MPI does not support
            threads, or an LSAM_* variable names no option.
    """
    check_build(real)
    check_libraries(Path("/proc/self/maps"))
    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
    require_threads("Horovod's thread beside LSAM's")
    resolve({})
    # group_size makes process sets after init.
    os.environ.setdefault("HOROVOD_DYNAMIC_PROCESS_SETS", "1")
    _real_init(*args, **kwargs)
    session.comm = _communicator(args[0] if args else kwargs.get("comm"))
    check_ranks(real, session.comm)
    check_world(MPI.COMM_WORLD.size, MPI.Get_library_version())
    launcher.watch().guard()
    if not session.started:
        session.started = True
        _abort_on_error()


def shutdown() -> None:
    """Close LSAM's chains and then Horovod, as `horovod.torch.shutdown`; the models then hold the center."""
    session.close()
    _real_shutdown()


def check_build(hvd: Any) -> None:  # noqa: ANN401 - a module
    """Raise InputError unless Horovod has MPI and uses it."""
    if not hvd.mpi_built():
        raise InputError(
            "Horovod: expected a build with MPI, which LSAM's windows need, found one with Gloo only: "
            "build it with HOROVOD_WITH_MPI=1, or run tools/install_horovod.sh"
        )
    if os.environ.get("HOROVOD_CONTROLLER", "mpi").lower() != "mpi":
        raise InputError(
            f"HOROVOD_CONTROLLER: expected mpi, found {os.environ['HOROVOD_CONTROLLER']}: use mpirun, srun or "
            "horovodrun --mpi"
        )


def check_libraries(maps: Path) -> None:
    """Raise InputError if the process has loaded two MPI libraries, one for mpi4py and one for Horovod.

    Args:
        maps: the process's memory map in Linux's format; without such a file nothing is checked.
    """
    loaded = libraries(maps)
    if len(loaded) > 1:
        raise InputError(
            f"MPI: expected one library for mpi4py and Horovod, found {' and '.join(loaded)} in one process: rebuild "
            f"Horovod with mpi4py's MPI, {MPI.get_vendor()[0]}: tools/install_horovod.sh {sys.executable}"
        )


def check_ranks(hvd: Any, comm: MPI.Intracomm) -> None:  # noqa: ANN401 - a module
    """Raise InputError unless Horovod and mpi4py see the same ranks."""
    if (hvd.rank(), hvd.size()) != (comm.rank, comm.size):
        raise InputError(
            f"Horovod: expected the ranks of MPI, found rank {hvd.rank()} of {hvd.size()} where mpi4py has rank "
            f"{comm.rank} of {comm.size}: use the launcher of the MPI library that both were built with"
        )


def _communicator(comm: Any) -> MPI.Intracomm:  # noqa: ANN401 - the `comm` of hvd.init: a communicator or ranks
    if comm is None or (not isinstance(comm, MPI.Comm) and not list(comm)):
        return MPI.COMM_WORLD
    if isinstance(comm, MPI.Intracomm):
        return comm
    return MPI.COMM_WORLD.Create_group(MPI.COMM_WORLD.group.Incl(list(comm)))


def _abort_on_error() -> None:
    """Make an uncaught exception abort the job, after its traceback: other ranks may wait for this one."""
    shown, process = sys.excepthook, os.getpid()

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        shown(kind, error, trace)
        if os.getpid() == process:
            session.abort(1)

    sys.excepthook = hook
