"""`lsam doctor` on machines that are right and on ones that are not, each staged for real, on both MPIs.

LSAM_DOCTOR_TRIALS sets how often each is tried.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.mpis import ROOT, Mpi, available, environment, run

TRIALS = int(os.environ.get("LSAM_DOCTOR_TRIALS", "1"))
DOCTOR = ("-m", "lsam_hpc", "doctor", "--json")
# What a container with too small a /dev/shm is like: its own mount, which ends with the command.
FULL = "mount -t tmpfs -o size=64m tmpfs /dev/shm && head -c 63M /dev/zero > /dev/shm/full && exec "
pytestmark = [pytest.mark.slow("stages bad machines, with two MPIs"), pytest.mark.parametrize("trial", range(TRIALS))]


def asked(command: list[str], **more: str) -> tuple[int, dict[str, Any], str]:
    """Return the exit code, what doctor has found, and what else was said."""
    done = run(command, 120, PYTHONPATH=str(ROOT), **more)
    assert done.stdout.count("verdict") == 1, f"{done.stdout}\n{done.stderr}"  # one rank speaks
    said = done.stdout[done.stdout.index("{") : done.stdout.rindex("}") + 1]
    return done.returncode, json.loads(said), done.stderr


def other(mpi: Mpi) -> Mpi:
    """Return the MPI that is not this one."""
    for found in available().values():
        if found.name != mpi.name:
            return found
    pytest.skip("no second MPI here: tests/run.sh installs it and sets LSAM_TEST_MPICH")


def test_a_good_machine_is_ready(mpi: Mpi, trial: int, tmp_path: Path) -> None:
    code, found, said = asked(mpi.command(2, mpi.forked, *DOCTOR, "--run-dir", str(tmp_path)))
    assert code == 0, f"{found}\n{said}"
    assert found["verdict"].startswith("ready")
    texts = {finding["check"]: finding["text"] for finding in found["findings"]}
    assert {"openmpi": "Open MPI", "mpich": "MPICH"}[mpi.name] in texts["mpi"]
    assert texts["placement"] == "2 ranks on 1 nodes, 2 on each"
    assert texts["window"].endswith("exact on all ranks")
    assert "without help" in texts["progress"]
    assert texts["hdf5"].endswith(", locks")
    assert not list(tmp_path.iterdir())


def test_a_full_dev_shm(mpi: Mpi, trial: int) -> None:
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"mount namespaces are not allowed here: {tried.stderr.strip()}")
    words = shlex.join(mpi.command(2, mpi.forked, *DOCTOR))
    code, found, _ = asked(["unshare", "--mount", "--propagation", "private", "sh", "-c", FULL + words])
    assert code == 2
    assert found["verdict"] == "not ready: /dev/shm"
    assert "for the 2 ranks of this node to start MPI, found 1.0 MB" in found["findings"][0]["text"]


def test_two_mpi_libraries_in_a_process(mpi: Mpi, trial: int) -> None:
    library = next((Path(other(mpi).python).parents[1] / "lib").glob("libmpi.so.[0-9]*"))
    code = (
        f"import ctypes, sys; from mpi4py import rc; rc.initialize = False; from mpi4py import MPI; "
        f"ctypes.CDLL({str(library)!r}); import lsam_hpc.cli; sys.exit(lsam_hpc.cli.main(sys.argv[1:]))"
    )
    status, found, _ = asked(mpi.command(2, mpi.forked, "-c", code, "doctor", "--json"))
    assert status == 2
    assert found["verdict"] == "not ready: mpi libraries"
    assert str(library.resolve()) in found["findings"][0]["text"]


def test_the_launcher_of_another_mpi(mpi: Mpi, trial: int) -> None:
    code, found, _ = asked([*other(mpi).mpiexec, "-n", "2", mpi.forked, *DOCTOR])
    assert code == 2
    assert found["verdict"] == "not ready: launcher"
    flag = {"openmpi": "pmix", "mpich": "pmi2"}[mpi.name]
    assert f"start it by srun --mpi={flag}" in found["findings"][0]["text"]


def test_alone(mpi: Mpi, trial: int) -> None:
    """Without a launcher, as on a login node; the table, not JSON."""
    command = [mpi.forked, "-m", "lsam_hpc", "doctor"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment(PYTHONPATH=str(ROOT))
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("verdict: ready")
    assert all(line.startswith(("ok ", "warn")) for line in lines[:-1])
