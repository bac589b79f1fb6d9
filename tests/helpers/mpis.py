"""The MPI implementations that the tests run on, and the commands that start jobs with them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.helpers.forked import forked

ROOT = Path(__file__).resolve().parents[2]
# Open MPI's launcher keeps files in ompi.PID. It fails ("listener thread failed to start") if a killed launcher with
# the same process id left such files, and the test suite starts so many processes that ids are used again.
_CLEARED = ("sh", "-c", 'rm -rf "${TMPDIR:-/tmp}/ompi.$$" && exec "$@"', "sh")


@dataclass(frozen=True)
class Mpi:
    """One MPI: a Python whose mpi4py uses it, and its mpiexec with the flags that tests need."""

    name: str
    python: str
    mpiexec: tuple[str, ...]

    @property
    def forked(self) -> str:
        """A replacement of this Python that has torch imported, for jobs that do not depend on the order of imports."""
        return forked(self.python, environment())

    def command(self, ranks: int, *words: str) -> list[str]:
        return [*self.mpiexec, "-n", str(ranks), *words]


@cache
def available() -> dict[str, Mpi]:
    """Return the installed MPIs by name: this interpreter's, and MPICH from the environment LSAM_TEST_MPICH."""
    pythons = [sys.executable]
    if other := os.environ.get("LSAM_TEST_MPICH"):
        pythons.append(str(Path(other) / "bin" / "python"))
    return {mpi.name: mpi for mpi in map(_probe, pythons)}


def _probe(python: str) -> Mpi:
    beside = Path(python).parent / "mpiexec"
    mpiexec = str(beside) if beside.exists() else shutil.which("mpiexec")
    assert mpiexec, f"no mpiexec beside {python} or on the PATH"
    done = subprocess.run([mpiexec, "--version"], capture_output=True, text=True, timeout=60, check=True)
    if "Open MPI" in done.stdout:
        return Mpi("openmpi", python, (*_CLEARED, mpiexec, "--bind-to", "none", "--oversubscribe"))
    return Mpi("mpich", python, (mpiexec,))


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a rank: one thread, Open MPI allowed as root and without its warning about UCX."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
        "OMPI_MCA_osc": "^ucx",
        "PYTHONFAULTHANDLER": "1",
        **more,
    }


def run(command: list[str], timeout: float, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a job; when its time is up, end the whole process group and raise TimeoutExpired with what it printed."""
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment(**more),
        cwd=ROOT,
        start_new_session=True,
    ) as process:
        before = segments()
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                out, err = process.communicate(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                out, err = process.communicate()
            remove(segments() - before)
            raise subprocess.TimeoutExpired(command, timeout, out, err) from None
        if process.returncode != 0:
            remove(segments() - before)
        return subprocess.CompletedProcess(command, process.returncode, out, err)


def segments() -> set[Path]:
    """Return the shared-memory files of MPI jobs; killed jobs leave theirs behind."""
    kinds = ("osc_sm*", "sm_segment*", "mpich_shm*")
    return {path for kind in kinds for path in Path("/dev/shm").glob(kind)}


def remove(paths: set[Path], seconds: float = 5.0) -> None:
    """Remove files that no process holds: killed ranks need a moment to end, and another job may still run."""
    deadline = time.monotonic() + seconds
    while paths:
        held = _held()
        for path in paths - held:
            path.unlink(missing_ok=True)
        paths = paths & held
        if time.monotonic() > deadline:
            return
        time.sleep(0.05)


def _held() -> set[Path]:
    """Return the files in /dev/shm that processes have open or mapped.

    Descriptors are read before maps, because a rank that starts makes a file, maps it and then closes it. MPICH's ranks
    open the file by name, and hang for ever in MPI_Init if the cleaning of another job has removed it meanwhile.
    """
    files = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended
            for link in (process / "fd").iterdir():
                with suppress(FileNotFoundError):  # closed meanwhile
                    files.add(link.readlink())
            lines = (process / "maps").read_text().splitlines()
            files |= {Path(line[line.index("/dev/shm") :]) for line in lines if "/dev/shm" in line}
    return files
