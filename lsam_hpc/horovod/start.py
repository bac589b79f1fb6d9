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
from lsam_hpc.preflight import check_world, libraries
from lsam_hpc.rma.progress import require_threads

_real_init, _real_shutdown = real.init, real.shutdown


def init(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as Horovod's
    """Start Horovod, as `horovod.torch.init`, after MPI by mpi4py, which LSAM's windows need.

    Raises:
        InputError: Horovod was built without MPI, or another MPI than mpi4py's is in the process, or MPI's threads are
            not there, or an LSAM_* variable is no option.
    """
    check_build(real)
    check_libraries(Path("/proc/self/maps"))
    if not MPI.Is_initialized():
        MPI.Init_thread(MPI.THREAD_MULTIPLE)
    require_threads("Horovod's thread beside LSAM's")
    resolve({})
    # Process sets of group_size are made after this.
    os.environ.setdefault("HOROVOD_DYNAMIC_PROCESS_SETS", "1")
    _real_init(*args, **kwargs)
    session.comm = _communicator(args[0] if args else kwargs.get("comm"))
    check_ranks(real, session.comm)
    check_world(MPI.COMM_WORLD.size, MPI.Get_library_version())
    if not session.started:
        session.started = True
        _abort_on_error()


def shutdown() -> None:
    """End LSAM's chains and then Horovod, as `horovod.torch.shutdown`; the models hold the center then."""
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
        maps: the process's memory map as Linux shows it; where there is none, nothing is looked at.
    """
    found = libraries(maps)
    if len(found) > 1:
        raise InputError(
            f"MPI: expected one library for mpi4py and Horovod, found {' and '.join(found)} in one process: rebuild "
            f"Horovod for mpi4py's, {MPI.get_vendor()[0]}: tools/install_horovod.sh {sys.executable}"
        )


def check_ranks(hvd: Any, comm: MPI.Intracomm) -> None:  # noqa: ANN401 - a module
    """Raise InputError unless Horovod and mpi4py see the same ranks."""
    if (hvd.rank(), hvd.size()) != (comm.rank, comm.size):
        raise InputError(
            f"Horovod: expected the ranks of MPI, found rank {hvd.rank()} of {hvd.size()} where mpi4py has rank "
            f"{comm.rank} of {comm.size}: is the launcher of the MPI that both were built for?"
        )


def _communicator(given: Any) -> MPI.Intracomm:  # noqa: ANN401 - what hvd.init takes
    if given is None or (not isinstance(given, MPI.Comm) and not list(given)):
        return MPI.COMM_WORLD
    if isinstance(given, MPI.Intracomm):
        return given
    ranks = list(given)
    return MPI.COMM_WORLD.Create_group(MPI.COMM_WORLD.group.Incl(ranks))


def _abort_on_error() -> None:
    """Have an exception that nobody catches end the job, after its traceback: other ranks may wait for this one."""
    shown, process = sys.excepthook, os.getpid()

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        shown(kind, error, trace)
        if os.getpid() == process:
            session.abort(1)

    sys.excepthook = hook
