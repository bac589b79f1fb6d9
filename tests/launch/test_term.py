"""TERM ends a job for good if somebody cancelled it, not if its time limit is near: batch systems are imitated."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from lsam_hpc.launch import submit
from lsam_hpc.launch.templates import SYSTEMS, render
from tests.helpers.waiting import wait_until
from tests.launch.test_submit import programs

# What the batch system says of the job's time: long before its limit, and close to it.
FAR_AND_NEAR = {
    "slurm": ("squeue", ("12:34", "1-00:00:10", "UNLIMITED", ""), ("0:59", "0:00", "INVALID")),
    "pbs": (
        "qstat",
        ("    Resource_List.walltime = 00:02:30", "    Resource_List.walltime = 36:00:00", ""),
        ("    comment = x\n    Resource_List.walltime = 00:01:00\n    stime = x",),
    ),
    "flux": ("flux", ("60", "100000", "4294967295", ""), ("59", "0")),
    "lsf": ("bjobs", ("0:20 L", "1:0 L", "-", ""), ("0:0 L", "0:1 L", "0:00 L")),
}
CASES = [
    (system, program, text, near)
    for system, (program, *texts) in FAR_AND_NEAR.items()
    for near, some in enumerate(texts)
    for text in some
]


@pytest.mark.parametrize(("system", "program", "text", "near"), CASES)
def test_term(system: str, program: str, text: str, near: int, tmp_path: Path) -> None:
    log = f"echo restarted >> {tmp_path}/log"
    (tmp_path / "text").write_text(text + "\n")
    answer = f"cat {tmp_path}/text; touch {tmp_path}/asked"
    if system == "flux":  # one program for all
        answer = f'case "$1 $2" in "job timeleft") {answer} ;; "--parent batch") {log} ;; esac'
    env = programs(tmp_path, **{program: answer}, scontrol=log, qsub=log)
    env |= {"PBS_O_WORKDIR": str(tmp_path), "PBS_JOBID": "7", "SLURM_JOB_ID": "7", "LSB_JOBID": "7"}
    flags = [f"--system={system}", "--setup=:", "--requeue=1", "--launch=sh -c"]
    _, job, _ = submit.parse(
        [*flags, "--", f"touch {tmp_path}/up; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; exit 3"]
    )
    script = tmp_path / "script"
    script.write_text(render(job, system))
    with subprocess.Popen(["bash", str(script)], cwd=tmp_path, env={**env, "LSB_JOBNAME": "x"}) as process:
        try:
            state = Path(f"/proc/{process.pid}/stat")
            # S: bash waits for the command. Before, a signal would be handled when the command has ended.
            wait_until(lambda: (tmp_path / "up").exists() and ") S " in state.read_text(), "bash waits", 60)
            process.send_signal(signal.SIGTERM)
            wait_until((tmp_path / "asked").exists, "the script asked the batch system", 60)
            (tmp_path / "go").touch()
            code = process.wait(60)
        finally:
            (tmp_path / "go").touch()
            process.kill()
    restarted = code == 99 if system == "lsf" else (tmp_path / "log").exists()
    assert restarted == bool(near)
    assert system == "lsf" or code == 3
    assert SYSTEMS[system].near_end in script.read_text()
