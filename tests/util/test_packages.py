"""The source distribution holds every file of the repository, and the wheel made from it works without dependencies."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.helpers.mpis import ROOT

BUILD = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"


def pythons():
    """Return Python's programs that lsam-hpc supports, by version."""
    found = {}
    for folder in [*os.environ["PATH"].split(os.pathsep), *Path.home().glob(".pyenv/versions/*/bin")]:
        for program in Path(folder).glob("python3.[0-9][0-9]"):
            done = subprocess.run(
                [program, "-c", "import sys, venv; print(sys.prefix)"], capture_output=True, text=True
            )
            if done.returncode == 0 and int(program.name[8:]) >= 10:
                found.setdefault(program.name, str(program))
    return found


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    """The names of the repository's files, the source distribution, and a wheel made from it."""
    folder = tmp_path_factory.mktemp("packages")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [name for name in listed.split("\0") if name and (ROOT / name).exists()]
    for name in names:  # a copy: the build leaves files in the source's folder
        (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / "source" / name, follow_symlinks=False)
    quiet = {"cwd": folder / "source", "check": True, "stdout": subprocess.DEVNULL, "timeout": 240}
    subprocess.run([sys.executable, "-c", BUILD, str(folder)], **quiet)
    source = next(folder.glob("*.tar.gz"))
    wheel = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run([*wheel, str(source)], **{**quiet, "cwd": folder})
    return names, source, next(folder.glob("*.whl"))


@pytest.mark.slow("builds packages")
def test_the_source_distribution_and_the_wheel_hold_all_files(packages):
    names, source, wheel = packages
    with tarfile.open(source) as archive:
        held = {member.name.partition("/")[2]: member for member in archive.getmembers() if not member.isdir()}
    hidden = re.compile(r"\.(ci|gitignore|pre-commit)")
    missing = [name for name in names if name not in held and not hidden.match(name) and not (ROOT / name).is_dir()]
    assert missing == []
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    links = {"lsam_hpc/tools/": "tools/", "lsam_hpc/launch/sites/": "jobs/sites/"}
    expected = {name for name in names if name.startswith("lsam_hpc/") and not (ROOT / name).is_dir()}
    for inner, outer in links.items():
        expected |= {name.replace(outer, inner, 1) for name in names if name.startswith(outer) and ".sh" not in name}
    assert {name for name in inside if ".dist-info/" not in name} == expected


@pytest.mark.slow("makes an environment for each Python")
@pytest.mark.parametrize("version", ["python3.10", "python3.11", "python3.12", "python3.13"])
def test_the_wheel_works_without_dependencies(packages, version, tmp_path):
    if (python := pythons().get(version)) is None:
        pytest.skip(f"no {version} here")
    subprocess.run([python, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True, timeout=120)
    bin_ = tmp_path / "venv" / "bin"
    pip = [sys.executable, "-m", "pip", "--python", bin_ / "python", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, packages[2]], check=True, timeout=120)

    def lsam(*words):
        return subprocess.run([bin_ / "lsam", *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)

    said = lsam("--version").stdout
    assert re.fullmatch(
        r"lsam-hpc \S+, Python \S+, torch none, mpi4py none \(no MPI library\), Horovod none\n", said
    ), said
    assert "#SBATCH" in lsam("submit", "--dry-run", "--", "lsam", "train").stdout
    done = lsam("inspect", "run")
    assert done.returncode == 2
    assert re.fullmatch(r"lsam inspect: expected the package \w+, found none: pip install .*\n", done.stderr)
