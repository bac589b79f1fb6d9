"""The distributions hold every file, their version is the tag's, and the wheel works in a clean environment."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.helpers.landscapes import write_run
from tests.helpers.mpis import ROOT

pytest.importorskip("setuptools_scm", reason="setuptools-scm is not installed: pip install 'lsam-hpc[dev]'")

BUILD = "import sys; from setuptools import build_meta; build_meta.build_{}(sys.argv[1])"
TOP = {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml"}
FOLDERS = {"docs", "jobs", "lsam_hpc", "tests", "tools"}
HIDDEN = re.compile(r"\.(ci|gitignore|gitattributes|pre-commit)")
READS_RUN = """
import sys
from lsam_hpc.trajectory import Run
run = Run(sys.argv[1])
print(len(run.ranks), len(run.steps(0)["loss"]))
"""


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


def run(*words, **more):
    """Run a program that does not find this repository, and return what it prints."""
    done = subprocess.run(words, capture_output=True, text=True, timeout=240, env=outside(), **more)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def outside():
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def git(folder, *words):
    return run("git", "-c", "user.name=tests", "-c", "user.email=tests@localhost", "-C", folder, *words)


def tracked():
    """Return the names of the repository's files."""
    names = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    return [name for name in names if name and (ROOT / name).exists()]


def version(folder):
    """Return the version that a build of a folder has."""
    return run(sys.executable, "-m", "setuptools_scm", cwd=folder).splitlines()[-1]


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A repository of its own with one commit of the files of this one, and without tags."""
    folder = tmp_path_factory.mktemp("repository")
    for name in tracked():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    git(folder, "init", "-q")
    git(folder, "add", "-A", "-f")
    git(folder, "commit", "-q", "-m", "files")
    return folder


@pytest.fixture(scope="module")
def packages(repository, tmp_path_factory):
    """The source distribution of a tagged clone, and the wheel made from it."""
    folder = tmp_path_factory.mktemp("packages")
    git(folder, "clone", "-q", repository, "source")
    git(folder / "source", "tag", "v0.3.0")
    run(sys.executable, "-c", BUILD.format("sdist"), folder, cwd=folder / "source")
    (source,) = folder.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(folder / "unpacked")
    (unpacked,) = (folder / "unpacked").iterdir()
    run(sys.executable, "-c", BUILD.format("wheel"), folder, cwd=unpacked)
    (wheel,) = folder.glob("*.whl")
    return source, wheel


@pytest.mark.slow("builds packages")
def test_the_version_is_that_of_the_tag(repository, tmp_path):
    def clone(name, *tags):
        git(tmp_path, "clone", "-q", repository, name)
        for tag in tags:
            git(tmp_path / name, "tag", tag)
        return tmp_path / name

    def archive(of):
        folder = tmp_path / f"archive-of-{of.name}"
        folder.mkdir()
        git(of, "archive", "-o", folder / "all.tar", "HEAD")
        run("tar", "-xf", "all.tar", cwd=folder)
        return folder

    commit = git(repository, "rev-parse", "HEAD")[:7]
    plain, tagged, later = clone("plain"), clone("tagged", "v0.3.0"), clone("later", "v0.3.0")
    git(later, "commit", "-q", "--allow-empty", "-m", "later")
    after = git(later, "rev-parse", "HEAD")[:7]
    assert re.fullmatch(rf"0\.1\.dev1\+g{commit}\w*", version(plain))
    assert version(tagged) == "0.3.0"
    assert re.fullmatch(rf"0\.3\.1\.dev1\+g{after}\w*", version(later))
    assert version(archive(tagged)) == "0.3.0"
    assert re.fullmatch(rf"0\.3\.1\.dev1\+g{after}\w*", version(archive(later)))
    assert version(archive(plain)) == "0.0"
    shutil.rmtree(plain / ".git")  # a folder of files, as in a container's build
    assert version(plain) == "0.0"


@pytest.mark.slow("builds packages")
def test_the_source_distribution_and_the_wheel_hold_all_files(packages):
    names = tracked()
    source, wheel = packages
    assert source.name == "lsam_hpc-0.3.0.tar.gz"
    with tarfile.open(source) as archive:
        held = {member.name.partition("/")[2]: member for member in archive.getmembers() if not member.isdir()}
    assert [name for name in names if name not in held and not HIDDEN.match(name) and not (ROOT / name).is_dir()] == []
    top = {name.partition("/")[0] for name in held}
    assert top >= TOP | FOLDERS
    assert {name for name in top - TOP - FOLDERS if name[0] != "."} == {"PKG-INFO", "setup.cfg", "lsam_hpc.egg-info"}
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    assert wheel.name == "lsam_hpc-0.3.0-py3-none-any.whl"
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
    run(python, "-m", "venv", "--without-pip", tmp_path / "venv")
    bin_ = tmp_path / "venv" / "bin"
    pip = [sys.executable, "-m", "pip", "--python", bin_ / "python", "install", "-q", "--no-deps", "--no-index"]
    run(*pip, packages[1])

    def lsam(*words):
        words = [bin_ / "lsam", *words]
        return subprocess.run(words, cwd=tmp_path, env=outside(), capture_output=True, text=True, timeout=60)

    assert lsam("--version").stdout == (
        f"lsam-hpc 0.3.0, Python {run(python, '-c', 'import platform; print(platform.python_version())').strip()}, "
        "torch none, mpi4py none (no MPI library), Horovod none\n"
    )
    assert "#SBATCH" in lsam("submit", "--dry-run", "--", "lsam", "train").stdout
    done = lsam("inspect", "run")
    assert done.returncode == 2
    assert re.fullmatch(r"lsam inspect: expected the package \w+, found none: pip install .*\n", done.stderr)


@pytest.mark.slow("makes an environment")
def test_the_wheel_reads_a_stored_run(packages, tmp_path):
    """With this environment's packages, but not its lsam-hpc, and outside the repository."""
    stored = write_run(tmp_path / "run", states=4)
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    bin_ = tmp_path / "venv" / "bin"
    pip = [sys.executable, "-m", "pip", "--python", bin_ / "python", "install", "-q", "--no-deps", "--no-index"]
    run(*pip, packages[1])
    purelib = Path(run(bin_ / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    others = Path(run(sys.executable, "-c", "import os, torch; print(os.path.dirname(torch.__path__[0]))").strip())
    (purelib / "packages.pth").write_text(f"{others}\n")  # after the wheel's; its .pth files are not read
    where = run(bin_ / "python", "-c", "import lsam_hpc; print(lsam_hpc.__file__, lsam_hpc.__version__)", cwd=tmp_path)
    assert where == f"{purelib / 'lsam_hpc' / '__init__.py'} 0.3.0\n"
    assert re.match(r"lsam-hpc 0\.3\.0, Python \S+, torch 2\.", run(bin_ / "lsam", "--version", cwd=tmp_path))
    assert "rank" in run(bin_ / "lsam", "inspect", stored, cwd=tmp_path)
    assert run(bin_ / "python", "-c", READS_RUN, stored, cwd=tmp_path).split()[0] == "2"
