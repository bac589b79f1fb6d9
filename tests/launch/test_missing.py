"""The command line on a machine where packages or the MPI library are missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lsam_hpc.cli import VERBS, main
from lsam_hpc.util.extras import EXTRAS
from tests.helpers.mpis import ROOT

# lsam VERB with packages that cannot be imported: argv[1].
CODE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1].split(","):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
from lsam_hpc import cli
verbs = sys.argv[2].split(",")
for verb in verbs:
    try:
        code = cli.main([verb, *sys.argv[3:]])
    except SystemExit as end:
        code = end.code
    print("code", code)
"""


def lsam(missing: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run verbs without some packages, and without an MPI library."""
    env = {**os.environ, "MPI4PY_LIBMPI": "/none/libmpi.so", "PYTHONPATH": str(ROOT), **more}
    env = {name: value for name, value in env.items() if not name.startswith(("OMPI_", "PMI", "SLURM"))}
    command = [sys.executable, "-c", CODE, missing, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env, cwd=ROOT)


@pytest.mark.parametrize("missing", ["none", ",".join(EXTRAS)])
def test_every_help(missing: str) -> None:
    done = lsam(missing, ",".join(VERBS), "--help")
    codes = [line for line in done.stdout.splitlines() if line.startswith("code")]
    assert codes == ["code 0"] * len(VERBS), done.stderr
    assert done.stdout.count("usage: ") == len(VERBS)


def test_the_missing_extra_is_named() -> None:
    done = lsam("simpy", "simulate", "--ranks", "2")
    assert done.stdout == "code 2\n"
    assert done.stderr == "lsam simulate: expected the package simpy, found none: pip install 'lsam-hpc[train]'\n"


READERS = tuple(VERBS)[tuple(VERBS).index("monitor") :]  # of runs' logs


def test_h5py_is_missing() -> None:
    done = lsam("h5py", ",".join(READERS), "run")
    assert done.stdout == "code 2\n" * len(READERS)
    message = "expected the package h5py, found none: pip install h5py"
    assert done.stderr.splitlines() == [f"lsam {verb}: {message}" for verb in READERS]


@pytest.mark.parametrize(
    ("words", "line"),
    [((), "VERB: expected one of train, wrap, .*, report, found none"), (("fly",), "VERB: .*'fly'.* 'train'")],
)
def test_the_verb_is_named(words: tuple[str, ...], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    (printed,) = capsys.readouterr().err.splitlines()
    assert re.match(f"lsam: {line}", printed)


def test_submit_without_an_mpi_library() -> None:
    done = lsam(",".join(EXTRAS), "submit", "--dry-run", "--system", "slurm", "--", "lsam", "train")
    assert "launch=(srun --mpi=pmix --cpu-bind=cores)" in done.stdout
    assert done.stdout.endswith("code 0\n")
    assert "no MPI library here" in done.stderr
    assert "Traceback" not in done.stderr


def test_doctor_without_an_mpi_library(tmp_path: Path) -> None:
    done = lsam(",".join(EXTRAS), "doctor", "--run-dir", str(tmp_path / "a" / "b"), OMP_NUM_THREADS="1")
    lines = done.stdout.splitlines()
    assert lines[-2:] == ["verdict: not ready: mpi", "code 2"], done.stdout + done.stderr
    assert lines[0].startswith("fail  mpi ")
    assert "/none/libmpi.so" in lines[0]
    assert "pip install lsam-hpc[mpi]" in lines[0]
    assert any(line.startswith("ok    torch") for line in lines)
    assert (tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("verb", ["train", "doctor"])
def test_mpi4py_is_missing(verb: str) -> None:
    done = lsam("mpi4py", verb)
    assert "MPI: expected mpi4py with an MPI library, found: No module named 'mpi4py'" in done.stdout + done.stderr
    assert done.stdout.endswith("code 2\n")
