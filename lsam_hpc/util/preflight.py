"""Checks of a rank's launcher, MPI library and /dev/shm, before MPI starts and just after.

With the wrong launcher MPI starts N independent one-rank jobs, and all of them exit 0. A full /dev/shm kills ranks
inside MPI_Init. Both become an error of one line.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lsam_hpc.errors import InputError
from lsam_hpc.util import container
from lsam_hpc.util.launched import launched_rank, launched_ranks, on_node

SHARED = "/dev/shm"
INFINIBAND = "/sys/class/infiniband"  # exists where a node has such devices
ROOM = 16 << 20  # bytes of /dev/shm per rank that MPI_Init takes: Open MPI 16 MiB, MPICH about 5 MiB
_LIBRARY = re.compile(r"libmpi(ch|_cray|_gnu\w*|_nvidia\w*)?(-[0-9a-f]+)?\.so[.0-9]*$")


class StartError(InputError):
    """MPI cannot be started, or was started wrongly.

    Args:
        check: the check that failed: /dev/shm, container, mpi, mpi libraries or launcher.
        message: one line, as for InputError.
        everywhere: True (default) if all ranks raise it, so that the launcher's first rank prints it for all.
    """

    def __init__(self, check: str, message: str, *, everywhere: bool = True) -> None:
        super().__init__(message, everywhere=everywhere)
        self.check = check

    @property
    def speaks(self) -> bool:
        """True if this rank prints the error. The others exit 0: after a 2, mpirun might kill the printing rank."""
        return not self.everywhere or launched_rank() == 0


def start() -> None:
    """Run the checks that need no MPI, start MPI, and check that all ranks are in one world.

    Raises:
        StartError: a check failed.
    """
    check_room()
    if (wrong := container.wrong()) is not None:
        raise StartError("container", wrong)
    version = library_version()
    from mpi4py import MPI

    check_libraries()
    check_pmi(version)
    if not MPI.Is_initialized():
        with needed_transports():
            _init_thread()
    check_world(MPI.COMM_WORLD.size, version)


def _init_thread() -> None:
    """Start MPI as mpi4py does, but without the GIL, so that a thread can end this rank if another one was killed."""
    from mpi4py import MPI

    for path in libraries():
        error = ctypes.CDLL(path).MPI_Init_thread(None, None, MPI.THREAD_MULTIPLE, ctypes.byref(ctypes.c_int()))
        if error:
            raise MPI.Exception(error)
        for comm in (MPI.COMM_SELF, MPI.COMM_WORLD):
            comm.Set_errhandler(MPI.ERRORS_RETURN)
    if not MPI.Is_initialized():  # a system without /proc
        MPI.Init_thread(MPI.THREAD_MULTIPLE)


def library_version() -> str:
    """Return the version string of mpi4py's MPI library, without starting MPI.

    Raises:
        StartError: mpi4py or its MPI library cannot be loaded.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize, mpi4py.rc.finalize = False, True  # also for later imports of MPI after a failure
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise StartError(
            "mpi",
            f"MPI: expected mpi4py with an MPI library, found: {' '.join(str(error).split())}: load your machine's "
            "MPI module, or pip install lsam-hpc[mpi]",
        ) from error
    return MPI.Get_library_version()


def is_cray(version: str) -> bool:
    """Return whether a library's version string is Cray MPICH's, which plain srun starts."""
    return "CRAY MPICH" in version.upper()


@contextmanager
def needed_transports() -> Iterator[None]:
    """Return a context to start MPI in: Open MPI loads only the transports that the ranks need.

    On one node libfabric is not needed, and takes about 1 s to load. UCX's windows need InfiniBand, and print an error
    without it. A single process needs no shared memory either,
    whose files would remain. At the end the environment is restored, for the jobs that this process starts.
    """
    ranks, launcher = launched_ranks()
    wanted = {}
    if not launcher:
        wanted = {"OMPI_MCA_btl": "self", "OMPI_MCA_osc": "^ucx"}
    elif on_node()[1] == ranks:
        wanted = {"OMPI_MCA_btl": "^ofi", "OMPI_MCA_osc": "^ucx"}
    elif not os.path.isdir(INFINIBAND):
        wanted = {"OMPI_MCA_osc": "^ucx"}
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def room(env: Mapping[str, str] = os.environ) -> tuple[int, int | None]:
    """Return the bytes of /dev/shm that the ranks of this node need to start MPI, and the free bytes.

    A single rank on its node needs none. The free bytes are None without a /dev/shm.
    """
    ranks = on_node(env)[1]
    try:
        status = os.statvfs(SHARED)
    except FileNotFoundError:
        return 0, None
    return (ranks * ROOM if ranks > 1 else 0), status.f_bavail * status.f_frsize


def check_room(env: Mapping[str, str] = os.environ) -> None:
    """Raise StartError if /dev/shm is too full for MPI to start: MPI would kill ranks without a message."""
    needed, free = room(env)
    if free is not None and free < needed:
        raise StartError(
            "/dev/shm",
            f"{SHARED} on {os.uname().nodename}: expected {needed / 1e6:.0f} MB free for the {on_node(env)[1]} ranks "
            f"of this node to start MPI, found {free / 1e6:.1f} MB: remove what killed jobs left (sm_segment.*, "
            "osc_sm.*, mpich_shm_*) or start the container with a larger --shm-size",
            everywhere=on_node(env)[0] > 0,  # other nodes may have room
        )


def libraries(maps: Path = Path("/proc/self/maps")) -> list[str]:
    """Return the MPI libraries that this process has loaded; empty on systems without /proc."""
    try:
        lines = maps.read_text().splitlines()
    except OSError:
        return []
    paths = {words[5] for words in (line.split(maxsplit=5) for line in lines) if len(words) == 6}
    return sorted({os.path.realpath(path) for path in paths if _LIBRARY.fullmatch(os.path.basename(path))})


def check_libraries() -> None:
    """Raise StartError if this process has loaded two MPI libraries, whose symbols shadow each other."""
    if len(loaded := libraries()) > 1:
        raise StartError(
            "mpi libraries",
            f"MPI: expected one library in a process, found {' and '.join(loaded)}: check LD_PRELOAD, "
            "LD_LIBRARY_PATH and the MPI that Horovod was built with",
        )


def check_pmi(version: str, env: Mapping[str, str] = os.environ) -> None:
    """Raise StartError if the MPI library does not support the launcher's protocol.

    Without this check, MPICH without PMIx aborts in MPI_Init, and Open MPI 5 or later starts worlds of one rank.

    Args:
        version: MPI's library version string.
        env: environment variables of this process.
    """
    if version.startswith("MPICH") and "pmix" not in version.lower() and "PMIX_RANK" in env and "PMI_RANK" not in env:
        raise _wrong_launcher(version, "a launcher with PMI", "one with PMIx (PMIX_RANK is set)")
    major = re.match(r"Open MPI v(\d+)", version)
    ranks, name = launched_ranks(env)
    if major and int(major[1]) >= 5 and ranks > 1 and "PMIX_RANK" not in env:
        raise _wrong_launcher(
            version,
            f"a world of {ranks} ranks, as {name} says",
            f"{ranks} of one rank: the launcher does not support PMIx",
        )


def check_world(size: int, version: str, env: Mapping[str, str] = os.environ) -> None:
    """Raise StartError unless MPI's world has as many ranks as the launcher started.

    Args:
        size: number of ranks in MPI's world.
        version: MPI's library version string.
        env: environment variables of this process.
    """
    launched, name = launched_ranks(env)
    if name and launched != size:
        raise _wrong_launcher(
            version, f"a world of {launched} ranks, as {name} says", f"one of {size}, {launched} times"
        )
    if not name:
        check_torchrun(size, env)
    tasks = int(env.get("SLURM_NTASKS", 1))
    if not name and size == 1 < tasks:
        raise _wrong_launcher(version, f"{tasks} ranks, as SLURM_NTASKS says", "one, started without srun or mpirun")


def check_torchrun(size: int, env: Mapping[str, str] = os.environ) -> None:
    """Raise StartError if torchrun started several processes, which MPI then does not connect.

    Args:
        size: number of ranks in MPI's world.
        env: environment variables of this process.
    """
    processes = int(env.get("WORLD_SIZE", 1))
    if "TORCHELASTIC_RUN_ID" in env and size == 1 < processes:
        raise StartError(
            "launcher",
            f"MPI: expected a world of {processes} ranks, as torchrun's WORLD_SIZE says, found {processes} of one: "
            f"torchrun starts processes without MPI: start the script by mpirun -n {processes} python, and set "
            "torchrun's variables by lsam_hpc.adapters.torchrun.set_torchrun_environment()",
            everywhere=False,
        )


def _wrong_launcher(version: str, expected: str, actual: str) -> StartError:
    if is_cray(version):
        how = "plain srun, or by mpiexec under PBS"
        return StartError(
            "launcher",
            f"MPI: expected {expected}, found {actual}: this Python's mpi4py uses Cray MPICH: start it by {how}",
        )
    name, flag = ("Open MPI", "pmix") if version.startswith("Open MPI") else (version.split(maxsplit=1)[0], "pmi2")
    if "FLUX_JOB_SIZE" in expected:
        flags = " -o pmi=pmix" if flag == "pmix" else ""
        return StartError(
            "launcher",
            f"MPI: expected {expected}, found {actual}: this Python's mpi4py uses {name}: start it by flux run{flags}",
        )
    return StartError(
        "launcher",
        f"MPI: expected {expected}, found {actual}: this Python's mpi4py uses {name}: start it by "
        f"srun --mpi={flag} or by {name}'s own mpirun",
    )
