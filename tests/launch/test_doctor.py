"""`lsam doctor` on good machines and on really misconfigured ones, with both MPIs.

LSAM_DOCTOR_TRIALS sets the number of trials of each test.
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
# Imitates a container with a small /dev/shm: a private mount that ends with the command.
FULL = "mount -t tmpfs -o size=64m tmpfs /dev/shm && head -c 63M /dev/zero > /dev/shm/full && exec "
pytestmark = [pytest.mark.slow("stages bad machines, with two MPIs"), pytest.mark.parametrize("trial", range(TRIALS))]


def doctor(command: list[str], **more: str) -> tuple[int, dict[str, Any], str]:
    """Return the exit code, the report, and stderr."""
    done = run(command, 120, PYTHONPATH=str(ROOT), **more)
    assert done.stdout.count("verdict") == 1, f"{done.stdout}\n{done.stderr}"  # only one rank prints
    text = done.stdout[done.stdout.index("{") : done.stdout.rindex("}") + 1]
    return done.returncode, json.loads(text), done.stderr


def other(mpi: Mpi) -> Mpi:
    """Return an MPI other than this one."""
    for candidate in available().values():
        if candidate.name != mpi.name:
            return candidate
    pytest.skip("no second MPI: tests/run.sh installs it and sets LSAM_TEST_MPICH")


def test_a_good_machine_is_ready(mpi: Mpi, trial: int, tmp_path: Path) -> None:
    job = ("--parameters", "1000000", "--shard", "fsdp2", "--group-size", "2")
    code, report, stderr = doctor(mpi.command(2, mpi.forked, *DOCTOR, "--run-dir", str(tmp_path), *job))
    assert code == 0, f"{report}\n{stderr}"
    assert report["verdict"].startswith("ready")
    texts = {finding["check"]: finding["text"] for finding in report["findings"]}
    assert {"openmpi": "Open MPI", "mpich": "MPICH"}[mpi.name] in texts["mpi"]
    assert texts["placement"] == "2 ranks on 1 nodes, 2 on each"
    assert texts["window"].endswith("exact on all ranks")
    assert "without help" in texts["progress"]
    assert texts["chains"].startswith("1 chain of 2 ranks; with SGD a rank holds 14.0 MB of vectors")
    assert texts["hdf5"].endswith(", locks")
    assert not list(tmp_path.iterdir())


def test_a_full_dev_shm(mpi: Mpi, trial: int) -> None:
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"mount namespaces are not allowed: {tried.stderr.strip()}")
    words = shlex.join(mpi.command(2, mpi.forked, *DOCTOR))
    code, report, _ = doctor(["unshare", "--mount", "--propagation", "private", "sh", "-c", FULL + words])
    assert code == 2
    assert report["verdict"] == "not ready: /dev/shm"
    assert "for the 2 ranks of this node to start MPI, found 1.0 MB" in report["findings"][0]["text"]


def test_two_mpi_libraries_in_a_process(mpi: Mpi, trial: int) -> None:
    library = next((Path(other(mpi).python).parents[1] / "lib").glob("libmpi.so.[0-9]*"))
    code = (
        f"import ctypes, sys; from mpi4py import rc; rc.initialize = False; from mpi4py import MPI; "
        f"ctypes.CDLL({str(library)!r}); import lsam_hpc.cli; sys.exit(lsam_hpc.cli.main(sys.argv[1:]))"
    )
    status, report, _ = doctor(mpi.command(2, mpi.forked, "-c", code, "doctor", "--json"))
    assert status == 2
    assert report["verdict"] == "not ready: mpi libraries"
    assert str(library.resolve()) in report["findings"][0]["text"]


def test_the_launcher_of_another_mpi(mpi: Mpi, trial: int) -> None:
    code, report, _ = doctor([*other(mpi).mpiexec, "-n", "2", mpi.forked, *DOCTOR])
    assert code == 2
    assert report["verdict"] == "not ready: launcher"
    flag = {"openmpi": "pmix", "mpich": "pmi2"}[mpi.name]
    assert f"start it by srun --mpi={flag}" in report["findings"][0]["text"]


def test_alone(mpi: Mpi, trial: int) -> None:
    """Without a launcher, as on a login node; prints the table."""
    command = [mpi.forked, "-m", "lsam_hpc", "doctor"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment(PYTHONPATH=str(ROOT))
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    lines = done.stdout.splitlines()
    assert lines[-1].startswith("verdict: ready")
    assert all(line.startswith(("ok ", "warn")) for line in lines[:-1])
