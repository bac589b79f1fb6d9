"""What a rank finds out about how it was started, before MPI starts and just after: it costs nothing.

A launcher of another MPI than Python's starts N worlds of one rank each, which train N times the same and end with 0. A
/dev/shm without room kills ranks inside MPI_Init. Both are told here in one line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from lsam_hpc.errors import InputError

SHARED = "/dev/shm"
ROOM = 16 << 20  # bytes of it per rank that MPI_Init takes: Open MPI 16 MiB, MPICH about 5
# Set for each rank by the launcher itself; Slurm's own variables are those of the job or of what mpirun started.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "JSM_NAMESPACE_SIZE")
_RANKS = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "JSM_NAMESPACE_RANK", "SLURM_PROCID")
_LOCAL = (("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"), ("MPI_LOCALRANKID", "MPI_LOCALNRANKS"))
_LIBRARY = re.compile(r"libmpi(ch|_cray|_gnu\w*|_nvidia\w*)?(-[0-9a-f]+)?\.so[.0-9]*$")


class StartError(InputError):
    """MPI was not started, or not as it should be.

    Args:
        check: what failed: /dev/shm, mpi libraries or launcher.
        message: one line, as for InputError.
        everywhere: whether the launcher's first rank speaks for this one.
    """

    def __init__(self, check: str, message: str, *, everywhere: bool = True) -> None:
        super().__init__(message, everywhere=everywhere)
        self.check = check

    @property
    def speaks(self) -> bool:
        """Whether this rank tells it. The others leave with 0: at a 2 mpirun might end the one that is about to."""
        return not self.everywhere or launched_rank() == 0


def start() -> None:
    """Check what can be checked before MPI starts, start it, and check that all ranks are in one world.

    Raises:
        StartError: a check failed.
    """
    import mpi4py

    mpi4py.rc.initialize, mpi4py.rc.finalize = False, True  # also for whoever imports MPI after a failure
    check_room()
    from mpi4py import MPI

    version = MPI.Get_library_version()
    check_libraries()
    check_pmi(version)
    if not MPI.Is_initialized():
        with needed_transports():
            MPI.Init_thread(MPI.THREAD_MULTIPLE)
    check_world(MPI.COMM_WORLD.size, version)


@contextmanager
def needed_transports() -> Iterator[None]:
    """Start MPI inside of this: Open MPI loads the transports that the ranks need, and no others.

    On one node libfabric is not needed, and takes it a second to load. A process that is alone needs no shared memory
    either, which it would leave behind. The environment is as before afterwards, for the jobs that this process starts.
    """
    ranks, launcher = launched_ranks()
    wanted = {}
    if not launcher:
        wanted = {"OMPI_MCA_btl": "self", "OMPI_MCA_osc": "^ucx"}
    elif on_node()[1] == ranks:
        wanted = {"OMPI_MCA_btl": "^ofi"}
    mine = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            del os.environ[name]


def launched_rank(env: Mapping[str, str] = os.environ) -> int:
    """Return the rank that the launcher gave this process, 0 without one."""
    return next((int(env[name]) for name in _RANKS if name in env), 0)


def launched_ranks(env: Mapping[str, str] = os.environ) -> tuple[int, str]:
    """Return how many ranks the launcher started, and the variable that says so; 1 and "" without a launcher."""
    for name in _SIZES:
        if name in env:
            return int(env[name]), name
    if "SLURM_STEP_NUM_TASKS" in env and "SLURM_STEP_ID" in env:
        return int(env["SLURM_STEP_NUM_TASKS"]), "SLURM_STEP_NUM_TASKS"
    return 1, ""


def on_node(env: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """Return this process's rank on its node and the number of ranks there, as the launcher says; (0, 1) without."""
    for rank, size in _LOCAL:
        if size in env:
            return int(env[rank]), int(env[size])
    if launched_ranks(env)[1] and "SLURM_STEP_TASKS_PER_NODE" in env:
        nodes: list[int] = []
        for word in env["SLURM_STEP_TASKS_PER_NODE"].split(","):  # 2(x3),1: three nodes with two and one with one
            tasks, _, times = word.partition("(x")
            nodes += [int(tasks)] * int(times.rstrip(")") or 1)
        return int(env.get("SLURM_LOCALID", 0)), nodes[int(env.get("SLURM_NODEID", 0))]
    return 0, 1


def room(env: Mapping[str, str] = os.environ) -> tuple[int, int | None]:
    """Return the bytes of /dev/shm that the ranks of this node need to start MPI, and those that are free.

    None: there is no /dev/shm. A rank that is alone on its node needs none.
    """
    ranks = on_node(env)[1]
    try:
        found = os.statvfs(SHARED)
    except FileNotFoundError:
        return 0, None
    return (ranks * ROOM if ranks > 1 else 0), found.f_bavail * found.f_frsize


def check_room(env: Mapping[str, str] = os.environ) -> None:
    """Raise StartError if /dev/shm has too little room for MPI to start: ranks would die there, without a word."""
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
    """Return the MPI libraries that this process has loaded; none where the system does not tell."""
    try:
        lines = maps.read_text().splitlines()
    except OSError:
        return []
    paths = {words[5] for words in (line.split(maxsplit=5) for line in lines) if len(words) == 6}
    return sorted({os.path.realpath(path) for path in paths if _LIBRARY.fullmatch(os.path.basename(path))})


def check_libraries() -> None:
    """Raise StartError if two MPI libraries are in this process: their symbols shadow each other."""
    if len(found := libraries()) > 1:
        raise StartError(
            "mpi libraries",
            f"MPI: expected one library in a process, found {' and '.join(found)}: look at LD_PRELOAD, "
            "LD_LIBRARY_PATH and what Horovod was built with",
        )


def check_pmi(version: str, env: Mapping[str, str] = os.environ) -> None:
    """Raise StartError if the launcher speaks a protocol that the MPI library does not know.

    MPICH without PMIx aborts in MPI_Init then, Open MPI from 5 on starts worlds of one rank.

    Args:
        version: what MPI says of its library.
        env: of this process.
    """
    if version.startswith("MPICH") and "pmix" not in version.lower() and "PMIX_RANK" in env and "PMI_RANK" not in env:
        raise _wrong_launcher(version, "a launcher that speaks PMI", "one that speaks PMIx (PMIX_RANK is set)")
    found = re.match(r"Open MPI v(\d+)", version)
    ranks, name = launched_ranks(env)
    if found and int(found[1]) >= 5 and ranks > 1 and "PMIX_RANK" not in env:
        raise _wrong_launcher(
            version,
            f"a world of {ranks} ranks, as {name} says",
            f"{ranks} of one rank: the launcher does not speak PMIx",
        )


def check_world(size: int, version: str, env: Mapping[str, str] = os.environ) -> None:
    """Raise StartError unless MPI's world has as many ranks as the launcher started.

    Args:
        size: of MPI's world.
        version: what MPI says of its library.
        env: of this process.
    """
    launched, name = launched_ranks(env)
    if name and launched != size:
        raise _wrong_launcher(
            version, f"a world of {launched} ranks, as {name} says", f"one of {size}, {launched} times"
        )
    tasks = int(env.get("SLURM_NTASKS", 1))
    if not name and size == 1 < tasks:
        raise _wrong_launcher(version, f"{tasks} ranks, as SLURM_NTASKS says", "one, started without srun or mpirun")


def _wrong_launcher(version: str, expected: str, found: str) -> StartError:
    name, flag = ("Open MPI", "pmix") if version.startswith("Open MPI") else (version.split(maxsplit=1)[0], "pmi2")
    return StartError(
        "launcher",
        f"MPI: expected {expected}, found {found}: this Python's mpi4py uses {name}: start it by "
        f"srun --mpi={flag} or by {name}'s own mpirun",
    )
