"""Launches that failed, whatever the launcher returned: bash runs the scripts, LSF and its launcher are imitated."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from lsam_hpc.launch import submit
from lsam_hpc.launch.templates import render

CONFIG = "mkdir -p runs/x/checkpoints && echo {} > runs/x/new && mv runs/x/new runs/x/config.json && "
SET = "printf '{\\n \"finished\": %s\\n}\\n' > runs/x/checkpoints/set-%s.json && "
DONE = CONFIG + SET % ("true", "000000000020")
HALF = CONFIG + SET % ("false", "000000000010")
CENTER = CONFIG + "touch runs/x/checkpoints/center.pt && "
BROKEN, NO_RANK, UNFINISHED = "echo srun: error >&2; ", "no rank wrote", "no manifest in runs/x/checkpoints says"


def ran(folder: Path, *launches: str, command: str = "lsam train --out runs/x") -> subprocess.CompletedProcess[str]:
    """Return what a script did whose launches do the given things, the last of them from then on."""
    cases = "".join(f"{i}) {text} ;;\n" for i, text in enumerate(launches[:-1], 1)) + f"*) {launches[-1]} ;;\n"
    launcher = folder / "launcher"
    launcher.write_text(f"#!/bin/bash\necho x >> launches\ncase $(wc -l < launches) in\n{cases}esac\n")
    launcher.chmod(0o755)
    flags = ["--system=lsf", "--setup=:", "--requeue=1", "--launch=./launcher"]
    _, job, _ = submit.parse([*flags, "--", *command.split()])
    script = render(job, "lsf").replace("pause=10", "pause=0")
    env = {**os.environ, "LSB_JOBNAME": "lsam", "LSB_JOBID": "7"}
    return subprocess.run(["bash"], input=script, capture_output=True, text=True, timeout=60, cwd=folder, env=env)


@pytest.mark.parametrize(
    ("launches", "code", "times", "why"),
    [
        ((DONE + "exit 0",), 0, 1, ""),
        ((CENTER + "exit 0",), 0, 1, ""),  # --checkpoint-every none
        ((DONE + "exit 4",), 4, 1, ""),
        (("exit 0", DONE + "exit 0"), 0, 2, NO_RANK),
        ((BROKEN + "exit 1", BROKEN + "exit 213", DONE + "exit 0"), 0, 3, NO_RANK),
        ((HALF + "exit 0", DONE + "exit 0"), 0, 2, UNFINISHED),
        (("exit 0",), 99, 4, NO_RANK),  # the job restarts
        ((BROKEN + "exit 1",), 1, 4, NO_RANK),
        ((HALF + "exit 1",), 1, 1, ""),  # a bug
        (("exit 2",), 2, 1, ""),  # bad options
        ((HALF + "exit 3",), 99, 1, ""),
        ((HALF + "kill -9 $$",), 99, 1, ""),
    ],
)
def test_a_launch_that_failed_is_repeated(
    launches: tuple[str, ...], code: int, times: int, why: str, tmp_path: Path
) -> None:
    done = ran(tmp_path, *launches)
    assert (done.returncode, (tmp_path / "launches").read_text().count("x")) == (code, times), done.stderr
    assert (why or "launch 1:") in done.stderr if why else "launch 1:" not in done.stderr


def test_a_failed_launch_does_not_finish_an_older_run(tmp_path: Path) -> None:
    """The run directory holds a finished run, which a larger budget continues."""
    assert ran(tmp_path, DONE + "exit 0").returncode == 0
    done = ran(tmp_path, "exit 0")
    assert done.returncode == 99
    assert NO_RANK in done.stderr


def test_it_says_so_if_no_restart_is_left(tmp_path: Path) -> None:
    assert ran(tmp_path, "exit 0").returncode == 99
    done = ran(tmp_path, "exit 0")
    assert done.returncode == 75
    assert "launch 4: no rank wrote runs/x/config.json, and the launcher returned 0" in done.stderr


def test_other_commands_are_judged_by_their_code(tmp_path: Path) -> None:
    assert ran(tmp_path, "exit 0", command="lsam wrap -- train.py").returncode == 0
    assert ran(tmp_path, "exit 1", command="lsam wrap -- train.py").returncode == 1
    assert (tmp_path / "launches").read_text().count("x") == 2
