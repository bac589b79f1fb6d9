"""Flux, imitated: a program `flux` that does what its manual says of `run`, `job`, `getattr` and `batch`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from lsam_hpc.launch import submit
from lsam_hpc.launch.templates import render
from lsam_hpc.launch.templates_shapes import SHAPES
from lsam_hpc.train.signals import job_end
from lsam_hpc.util import preflight
from tests.helpers.waiting import wait_until
from tests.launch.test_submit import programs

FLUX = """\
echo "$*" >> {0}/log
case "$1 $2" in
  "getattr jobid") echo fJob ;;
  "job id") echo 4711 ;; # the number of $3
  "job timeleft") cat {0}/left ;;
  "--parent batch") cp "$3" {0}/copy; echo "$LSAM_ATTEMPT $LSAM_OUT" >> {0}/again; echo fNext ;;
  run*) while [ "$1" != sh ]; do shift; done; exec "$@" ;;
esac"""


def staged(folder: Path, command: str, *flags: str) -> tuple[Path, dict[str, str]]:
    """Return a script that runs a shell command on the ranks, and the environment that imitates Flux."""
    env = programs(folder, flux=FLUX.format(folder))
    (folder / "left").write_text("1000\n")
    words = ["--system", "flux", "--setup", ":", "--requeue", "2", *flags, "--", "sh", "-c", command]
    script = folder / "script.sh"
    script.write_text(render(submit.parse(words)[1], "flux"))
    return script, {name: value for name, value in env.items() if not name.startswith("LSAM_")}


def test_the_directives_have_one_sentinel_and_stand_together() -> None:
    """flux-batch(1): another sentinel, or a directive after other lines, is an error."""
    lines = render(SHAPES["gpu-node"], "flux").splitlines()
    directives = [i for i, line in enumerate(lines) if re.match(r"\W*(flux|FLUX):", line)]
    assert directives == list(range(directives[0], directives[-1] + 1))
    assert all(lines[i].startswith("#flux: ") for i in directives)
    assert all(line.startswith("#") for line in lines[: directives[0]])
    options = [lines[i].removeprefix("#flux: ").partition(" #")[0].strip() for i in directives]
    given = [option for option in options if not option.startswith("#")]
    assert all(re.fullmatch(r"--[a-z-]+=\S+", option) for option in given)
    assert {"--nodes=1", "--nslots=1", "--cores-per-slot=32", "--gpus-per-slot=4", "--time-limit=14400s"} <= {*given}
    assert [option for option in options if option.startswith("#")] == ["# --queue=NAME", "# --setattr=bank=NAME"]


def test_options_reach_the_directives() -> None:
    flags = ["--nodes", "3", "--exclusive", "--partition", "pbatch", "--account", "guests", "--time", "1-00:00:00"]
    job = submit.parse(["--system", "flux", *flags, "--directives=--requires=big", "--", "lsam", "train"])[1]
    text = render(job, "flux")
    for option in ("nodes=3", "exclusive", "queue=pbatch", "setattr=bank=guests", "time-limit=86400s", "requires=big"):
        assert re.search(rf"(?m)^#flux: --{option}( |$)", text), option
    assert "nslots" not in text
    assert "launch=(flux run --nodes=3 --tasks-per-node=4 --exclusive -o cpu-affinity=per-task" in text


@pytest.mark.parametrize(
    ("code", "attempt", "again"), [(0, "", ""), (2, "", ""), (3, "", "1"), (137, "1", "2"), (3, "2", "")]
)
def test_a_job_submits_itself_again(code: int, attempt: str, again: str, tmp_path: Path) -> None:
    script, env = staged(tmp_path, f"exit {code}")
    env |= {"LSAM_ATTEMPT": attempt, "LSAM_OUT": "runs/first"} if attempt else {}
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, timeout=60, cwd=tmp_path, env=env)
    assert done.returncode == code, done.stderr
    calls = (tmp_path / "log").read_text().splitlines()
    assert any(call.startswith("run --nodes=1 --tasks-per-node=4 --exclusive ") for call in calls)
    assert (tmp_path / "again").exists() == bool(again)
    if again:
        out = "runs/first" if attempt else "runs/lsam-4711"
        assert (tmp_path / "again").read_text() == f"{again} {out}\n"
        assert (tmp_path / "copy").read_text() == script.read_text()


def test_the_script_does_not_signal_the_launcher(tmp_path: Path) -> None:
    """Flux signals the ranks itself: USR1 would end `flux run`, and the ranks would go on without it."""
    command = f"touch {tmp_path}/up; while [ ! -e {tmp_path}/go ]; do sleep 0.01; done; exit 3"
    script, env = staged(tmp_path, command)
    with subprocess.Popen(["bash", str(script)], cwd=tmp_path, env=env) as job:
        try:
            state = Path(f"/proc/{job.pid}/stat")
            wait_until(lambda: (tmp_path / "up").exists() and ") S " in state.read_text(), "bash waits", 60)
            job.send_signal(signal.SIGUSR1)
            wait_until(lambda: not pending(job.pid), "bash took the signal", 60)
            assert job.poll() is None
            (tmp_path / "go").touch()
            assert job.wait(60) == 3  # not 138
        finally:
            (tmp_path / "go").touch()
            job.kill()
    assert (tmp_path / "again").exists()


def pending(pid: int) -> bool:
    """Return whether a process has a signal that it has not taken."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return any(int(lines[name], 16) for name in ("SigPnd", "ShdPnd"))


@pytest.mark.parametrize(("left", "seconds"), [("90", 90), ("0", 0), ("4294967295", None), ("", None)])
def test_ranks_ask_flux_for_the_end_of_the_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, left: str, seconds: int | None
) -> None:
    monkeypatch.setenv("PATH", programs(tmp_path, flux=FLUX.format(tmp_path))["PATH"])
    monkeypatch.setenv("FLUX_JOB_ID", "fJob")
    (tmp_path / "left").write_text(left + "\n")
    end = job_end()
    assert (end is None) == (seconds is None)
    assert end is None or abs(end - time.time() - (seconds or 0)) < 30


def test_worlds_of_one_rank_are_found() -> None:
    env = {"FLUX_JOB_SIZE": "4", "FLUX_TASK_RANK": "2", "FLUX_JOB_ID": "fJob"}
    assert preflight.launched_ranks(env) == (4, "FLUX_JOB_SIZE")
    assert preflight.launched_rank(env) == 2
    message = r"a world of 4 ranks, as FLUX_JOB_SIZE says, found .* uses Open MPI: start it by flux run -o pmi=pmix$"
    with pytest.raises(preflight.StartError, match=message):
        preflight.check_pmi("Open MPI v5.0.11, package: x", env)
    with pytest.raises(preflight.StartError, match=r"uses MPICH: start it by flux run$"):
        preflight.check_world(1, "MPICH Version: 5.0", env)


def test_without_flux_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLUX_JOB_ID", raising=False)
    assert "FLUX_JOB_ID" not in os.environ
    monkeypatch.setenv("SLURM_JOB_END_TIME", "7")
    assert job_end() == 7
