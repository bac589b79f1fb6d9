"""The batch scripts under a real Slurm: each launcher, and every way to end a job early.

LSAM_SLURM_TRIALS sets the number of trials of each disturbance, each at another moment.
"""

from __future__ import annotations

import json
import os
import random
import re
import shlex
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lsam_hpc.trajectory import Run
from tests.helpers.mpis import ROOT, Mpi
from tests.helpers.slurm import Cluster
from tests.helpers.waiting import wait_until
from tests.slurm.conftest import Job, edited, submitted

pytestmark = [pytest.mark.slow("needs a Slurm"), pytest.mark.timeout(400)]
TRIALS = int(os.environ.get("LSAM_SLURM_TRIALS", "1"))
STEPS, PERIOD = 2400, 400  # steps of all ranks: per run, between checkpoints
LIMIT = 150.0  # s, longest wait
IMAGES = 449  # of the digits' test set
# --period 20, because an exchange between three nodes on two cores takes as long as tens of steps.
TRAIN = (
    f"python -m lsam_hpc train --steps {STEPS} --period 20 --checkpoint-every {PERIOD} --flush-seconds 0.2 "
    '--out "$out" --resume auto'
)
SRUN = {"openmpi": "srun --mpi=pmix", "mpich": "srun --mpi=pmi2"}


def error_of(job: Job) -> float:
    """Return the center's test error in % as printed by a job."""
    errors = re.findall(r"^center +\S+ +(\S+)", job.said, re.MULTILINE)
    assert errors, job.said
    return float(errors[-1])


@pytest.mark.parametrize(
    ("script", "launch", "which"),
    [
        ("many-nodes", "srun", "openmpi"),
        ("preemptible", "srun", "mpich"),
        ("cpu-node", "mpirun", "openmpi"),
        ("cpu-node", "mpirun", "mpich"),
    ],
)
def test_ranks_of_two_nodes_train_together(
    cluster: Cluster, request: pytest.FixtureRequest, folder: Path, script: str, launch: str, which: str
) -> None:
    mpi: Mpi = request.getfixturevalue(which)
    no_gpus = {"gpus_per_node": None, "gpu_bind": None} if script == "many-nodes" else {}
    each = 2 if launch == "srun" else 1
    command = TRAIN.replace(f"--steps {STEPS}", f"--steps {100 * each} --budget per-rank")
    launch = SRUN[which] if launch == "srun" else launch
    job = submitted(cluster, edited(script, folder, mpi, launch, command, nodes=2, ntasks_per_node=each, **no_gpus))
    job.until("COMPLETED", seconds=LIMIT)
    with Run(job.run) as run:
        assert run.ranks == list(range(2 * each))
        logs = [run.logs[rank].attributes for rank in run.ranks]
        assert [log["host"] for log in logs] == ["n1"] * each + ["n2"] * each
        assert {log["job_id"] for log in logs} == {job.number}
        assert [len(run.steps(rank)["loss"]) for rank in run.ranks] == [50] * 2 * each
        assert all(len(run.exchanges(rank)["accepted"]) >= 2 for rank in run.ranks)
    assert re.search(rf"^rank {2 * each - 1} ", job.said, re.MULTILINE), job.said


@pytest.mark.parametrize(("order", "which"), [("block", "openmpi"), ("block", "mpich"), ("cyclic", "openmpi")])
def test_each_node_holds_a_sharded_chain(
    cluster: Cluster, request: pytest.FixtureRequest, folder: Path, order: str, which: str
) -> None:
    """Slurm's own order of ranks is block; with another one the job trains too, and says that chains span nodes."""
    mpi: Mpi = request.getfixturevalue(which)
    chains = "--shard fsdp2 --group-size 2 --model mlp --budget per-rank"
    command = TRAIN.replace(f"--steps {STEPS}", f"--steps 100 {chains}")
    launch = SRUN[which] + (f" --distribution={order}" if order != "block" else "")
    options = {"nodes": 2, "ntasks_per_node": 2, "gpus_per_node": None, "gpu_bind": None}
    job = submitted(cluster, edited("chain-per-node", folder, mpi, launch, command, **options))
    job.until("COMPLETED", seconds=LIMIT)
    with Run(job.run) as run:
        assert run.ranks == [0, 1]
        hosts = [run.logs[chain].attributes["host"] for chain in run.ranks]
        assert [len(run.steps(chain)["loss"]) for chain in run.ranks] == [50, 50]
    assert hosts == (["n1", "n2"] if order == "block" else ["n1", "n1"])  # of each chain's first rank
    said = [line for line in job.said.splitlines() if "span nodes" in line]
    assert [line.partition(", ")[0] for line in said] == (
        [] if order == "block" else ["lsam-hpc: 2 of 2 chains span nodes"]
    )


@pytest.mark.parametrize(("which", "flag", "right"), [("openmpi", "pmi2", "pmix"), ("mpich", "pmix", "pmi2")])
def test_the_wrong_mpi_flag_is_reported(
    cluster: Cluster, request: pytest.FixtureRequest, folder: Path, which: str, flag: str, right: str
) -> None:
    mpi: Mpi = request.getfixturevalue(which)
    job = submitted(cluster, edited("cpu-node", folder, mpi, f"srun --mpi={flag}", TRAIN, ntasks_per_node=2))
    status = job.until("FAILED", seconds=LIMIT)
    assert status["ExitCode"] == "2:0"
    lines = [line for line in job.said.splitlines() if line.startswith("lsam train:")]
    assert len(lines) == 1, job.said
    assert f"start it by srun --mpi={right}" in lines[0]
    assert not job.run.exists()


@pytest.fixture(scope="session")
def usual() -> dict[int, float]:
    """The test error of each trial's undisturbed job."""
    return {}


@pytest.mark.parametrize("trial", range(TRIALS))
@pytest.mark.parametrize("how", ["nothing", "signal", "time-limit", "requeue", "preemption", "lost-rank", "crash"])
def test_a_disturbed_job_resumes(
    cluster: Cluster, openmpi: Mpi, mpich: Mpi, folder: Path, usual: dict[int, float], how: str, trial: int
) -> None:
    chance = random.Random(f"{how} {trial}")
    mpi = (openmpi, mpich)[(trial + ("signal", "preemption").count(how)) % 2]
    command, moment = TRAIN, int(PERIOD * chance.uniform(1.2, 3))
    if how == "time-limit":  # Slurm enforces limits every 30 s: the rest of this run must last longer
        seconds = 45 / ((STEPS - moment) / 2)
        command = command.replace("-m lsam_hpc train", f"{ROOT}/tests/slurm/slow_train.py {moment // 2} {seconds:.3f}")
    script = edited("preemptible", folder, mpi, SRUN[mpi.name], command, nodes=2, ntasks_per_node=1, time="00:10:00")
    job = submitted(cluster, script, *(["--partition=low"] if how == "preemption" else []))
    if how != "nothing":
        reached = job.until_step(moment, LIMIT)
        disturb(cluster, job, how)
        resumed = resumed_at(job)
        if how in ("signal", "time-limit"):
            assert resumed >= reached, job.said  # it wrote a checkpoint before it ended
        # Sets are written while training continues: a kill may come before the newest set is complete.
        assert resumed >= reached - 2 * PERIOD, job.said
    job.until("COMPLETED", seconds=LIMIT)
    assert job.newest is not None
    assert (job.newest.step, job.newest.finished) == (STEPS, True)
    with Run(job.run) as run:
        assert max(run.steps(rank)["total_iteration"].max() for rank in run.ranks) == STEPS - 1
        taken = sum(len(run.steps(rank)["loss"]) for rank in run.ranks)
    # Ranks write their files at different steps: after a kill the steps between are repeated or skipped.
    slack = 0 if how in ("nothing", "signal", "time-limit") else PERIOD // 4
    assert abs(taken - STEPS) <= slack, job.said
    error = error_of(job)
    if how == "nothing":
        usual[trial] = error
    elif trial in usual:
        share = max(usual[trial], 2.0) / 100
        # Three standard deviations of the difference of two binomial shares: one such test in 700 fails by chance.
        assert error <= usual[trial] + 300 * (2 * share * (1 - share) / IMAGES) ** 0.5


def disturb(cluster: Cluster, job: Job, how: str) -> None:
    """Disturb a job."""
    if how == "signal":
        cluster.call("scancel", "--batch", "--signal=USR1", job.number)
    elif how == "time-limit":  # the script is signalled 300 s before its end
        cluster.call("scontrol", "update", f"JobId={job.number}", "TimeLimit=5")
        wait_until(lambda: cluster.show(job.number)["Restarts"] == "1", "the restart", LIMIT, pause=0.1)
        cluster.call("scontrol", "update", f"JobId={job.number}", "TimeLimit=10")  # else it is signalled again
    elif how == "requeue":
        cluster.call("scontrol", "requeue", job.number)
    elif how == "preemption":
        pushing = cluster.submit("--nodes=3", "--exclusive", "--output=/dev/null", "--wrap", "true")
        cluster.until(pushing, "COMPLETED", seconds=LIMIT)
    elif how == "lost-rank":
        os.kill(process_of(job, rank=1), signal.SIGKILL)
    else:
        cluster.crash("n2")  # not the node of the script: then Slurm itself would restart the job


def process_of(job: Job, rank: int) -> int:
    """Return the id of a rank's process outside the nodes' namespaces."""
    variables = {f"SLURM_JOB_ID={job.number}", f"SLURM_PROCID={rank}", "SLURM_STEP_ID=0"}
    pids = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended, or belongs to the kernel
            words = (process / "cmdline").read_text().split("\0")
            if "train" in words and variables <= set((process / "environ").read_text().split("\0")):
                pids.append(int(process.name))
    assert len(pids) == 1, pids
    return pids[0]


def resumed_at(job: Job) -> int:
    """Wait until a job has restarted; return the global step from which it resumes."""
    deadline = time.monotonic() + LIMIT
    while not (match := re.search(r"resuming from step (\d+)", job.said)):
        job.until("PENDING", "RUNNING", "SIGNALING", "COMPLETING", "REQUEUED", "NODE_FAIL", "PREEMPTED", seconds=0)
        assert time.monotonic() < deadline, job.said
        time.sleep(0.1)
    assert int(job.cluster.show(job.number)["Restarts"]) == 1
    return int(match[1])


def test_a_sweep_is_an_array_of_runs(cluster: Cluster, openmpi: Mpi, folder: Path) -> None:
    command = TRAIN.replace(f"--steps {STEPS}", "--steps 50") + ' --rho "$value"'
    path = edited("sweep", folder, openmpi, SRUN["openmpi"], command, ntasks_per_node=1, array="1-2")
    job = submitted(cluster, path)
    for element in ("1", "2"):
        cluster.until(f"{job.number}_{element}", "COMPLETED", seconds=LIMIT)
    rhos = []
    for element in ("1", "2"):
        with Run(folder / "runs" / f"lsam-{job.number}-{element}") as run:
            rhos.append(run.config["rho"])
    assert rhos == [0.02, 0.05]


def test_a_chain_of_jobs_is_one_run(cluster: Cluster, openmpi: Mpi, folder: Path) -> None:
    site = folder / "site.toml"
    site.write_text('system = "slurm"\nlaunch = "srun --mpi=pmix"\ncpus-per-rank = 1\n')
    done = subprocess.run(
        [
            openmpi.python,
            "-m",
            "lsam_hpc",
            "submit",
            "--site",
            str(site),
            "--ranks-per-node",
            "2",
            "--chain",
            "3",
            "--",
            *shlex.split("python -m lsam_hpc train --resume auto --out runs/lsam --flush-seconds 0.2 --steps 12000"),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env=cluster.environment(PYTHONPATH=str(ROOT)),
    )
    assert done.returncode == 0, done.stderr
    first, second, third = done.stdout.split()
    job, later = (Job(cluster, number, folder, "lsam") for number in (first, second))
    job.until_step(500, LIMIT)
    cluster.call("scancel", "--batch", "--signal=USR1", first)
    assert cluster.until(first, "FAILED", seconds=LIMIT)["ExitCode"] == "3:0", job.said
    for number in (second, third):
        cluster.until(number, "COMPLETED", seconds=LIMIT, what=lambda: later.said)
    assert "resuming from step" in later.said
    with Run(job.run) as run:
        assert sum(len(run.steps(rank)["loss"]) for rank in run.ranks) == 12_000


def test_the_environment_is_copied_to_the_disks_of_the_nodes(cluster: Cluster, mpich: Mpi, folder: Path) -> None:
    env, lines = folder / "env", []
    subprocess.run([mpich.python, "-m", "venv", "--without-pip", str(env)], check=True, timeout=60)
    purelib = "import sysconfig; print(sysconfig.get_path('purelib'))"
    for python in (env / "bin" / "python", Path(mpich.python)):
        done = subprocess.run([python, "-c", purelib], capture_output=True, text=True, check=True, timeout=60)
        lines.append(done.stdout.strip())
    (Path(lines[0]) / "packages.pth").write_text(f"import site; site.addsitedir({lines[1]!r})\n")
    subprocess.run(["tar", "-C", str(env), "-cf", str(folder / "env.tar"), "."], check=True, timeout=60)
    command = "python -c 'import socket, sys; print(sys.prefix, socket.gethostname())'"
    options = {"nodes": 2, "ntasks_per_node": 2, "gpus_per_node": None, "gpu_bind": None}
    path = edited("many-nodes", folder, mpich, SRUN["mpich"], command, **options)
    text = path.read_text()
    for old, new in (("pack=''", "pack=env.tar"), ("disk=/tmp ", f"disk={cluster.disk} ")):
        assert text.count(old) == 1
        text = text.replace(old, new)
    path.write_text(text)
    job = submitted(cluster, path)
    job.until("COMPLETED", seconds=LIMIT)
    assert sorted(job.said.splitlines()) == [f"{cluster.disk}/lsam-{job.number} n{node}" for node in (1, 1, 2, 2)]
    words = ["srun", "--nodes=3", "--ntasks-per-node=1", "find", str(cluster.disk), "-name", f"lsam-{job.number}*"]
    assert cluster.call(*words) == ""


@pytest.mark.parametrize("which", ["openmpi", "mpich"])
def test_doctor_on_two_nodes(cluster: Cluster, request: pytest.FixtureRequest, folder: Path, which: str) -> None:
    mpi: Mpi = request.getfixturevalue(which)
    words = [*SRUN[which].split(), "--nodes=2", "--ntasks-per-node=2", mpi.python, "-m", "lsam_hpc", "doctor", "--json"]
    text = cluster.call(*words, "--run-dir", str(folder), PYTHONPATH=str(ROOT))
    report = json.loads(text[text.index("{") : text.rindex("}") + 1])
    assert report["verdict"].startswith("ready"), report
    texts = {finding["check"]: finding["text"] for finding in report["findings"]}
    assert texts["placement"] == "4 ranks on 2 nodes, 2 on each"
    assert "by a helper thread" in texts["progress"]
    print("\n".join(f"{check}: {text}" for check, text in texts.items()))


def test_doctor_sees_that_nodes_do_not_share_a_folder(cluster: Cluster, mpich: Mpi) -> None:
    words = [*SRUN["mpich"].split(), "--nodes=2", "--ntasks-per-node=1", mpich.python, "-m", "lsam_hpc", "doctor"]
    text = cluster.call(*words, "--run-dir", "/dev/shm", PYTHONPATH=str(ROOT), check=False)
    assert re.search(r"^fail  run directory .*/dev/shm is not seen by rank 1", text, re.MULTILINE), text
    assert "verdict: not ready: run directory" in text


def test_the_job_s_end_is_known(cluster: Cluster, openmpi: Mpi) -> None:
    code = "import time; from lsam_hpc.train.signals import job_end; print(job_end() - time.time())"
    settings = {"TZ": "Asia/Tokyo", "SLURM_TIME_FORMAT": "%H:%M", "SQUEUE_STATES": "PD"}
    words = ["srun", "--ntasks=1", "--time=5", openmpi.python, "-c", code]
    printed = cluster.call(*words, PYTHONPATH=str(ROOT), **settings)
    assert float(printed) == pytest.approx(300, abs=60)


def test_a_failed_launch_is_repeated(cluster: Cluster, openmpi: Mpi, folder: Path) -> None:
    """srun's first launch fails with 1, the second one is an srun that returns 0 although no rank started."""
    (folder / "launch").write_text(
        'case $(cat "$0.log" 2> /dev/null | wc -l) in\n'
        "  0) mpi=none-such ;; 1) mpi=none-such zero=1 ;; *) mpi=pmix ;;\nesac\n"
        'echo x >> "$0.log"; srun --mpi=$mpi "$@" || [ -n "$zero" ]\n'
    )
    command = TRAIN.replace(f"--steps {STEPS}", "--steps 50")
    script = edited("cpu-node", folder, openmpi, f"bash {folder}/launch", command, ntasks_per_node=1)
    script.write_text(script.read_text().replace("pause=10", "pause=1"))
    job = submitted(cluster, script)
    job.until("COMPLETED", seconds=LIMIT)
    assert [f"launch {i}: no rank wrote" in job.said for i in (1, 2, 3)] == [True, True, False], job.said
    assert job.newest is not None
    assert job.newest.finished


def test_a_job_is_not_completed_by_launches_that_return_0(cluster: Cluster, openmpi: Mpi, folder: Path) -> None:
    (folder / "launch").write_text('srun --mpi=none-such "$@"; exit 0\n')
    script = edited("cpu-node", folder, openmpi, f"bash {folder}/launch", TRAIN, ntasks_per_node=1)
    script.write_text(script.read_text().replace("pause=10", "pause=0"))
    job = submitted(cluster, script)
    assert job.until("FAILED", seconds=LIMIT)["ExitCode"] == "75:0"
    assert "launch 4: no rank wrote" in job.said
